"""Settings of the `training` section that only some methods read, and what each method needs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field, model_validator

from truthgpt_serve.config.base import (
    FUNCTION_PATTERN,
    Count,
    NonNegativeNumber,
    Refusal,
    refuse,
)
from truthgpt_serve.config.training.methods import METHODS, OWN_SETTINGS
from truthgpt_serve.config.training.schedule import Schedule


class TextTraining(Schedule):
    """The settings that only some methods read."""

    reward: Annotated[str, Field(pattern=FUNCTION_PATTERN)] | None = None
    """Reward function of `grpo` as `module:function`, found in the working directory and
    beside this file too. It takes `prompts`, `completions` and the data's other columns as lists by
    keyword, and returns a number for each completion."""

    beta: NonNegativeNumber = 0.1
    """Weight of staying close to the model before training (`dpo`, `grpo`). More changes the model
    less; 0 in `grpo` leaves the comparison, and its memory, out."""

    num_generations: Annotated[int, Field(ge=2)] = 8
    """Answers that `grpo` samples for each prompt and compares. More compares better and takes
    longer. The examples of an optimizer step must be a multiple of it."""

    max_new_tokens: Count = 256
    """Longest answer that `grpo` samples, in tokens. More takes more time and memory."""

    @model_validator(mode="after")
    def _check_method(self) -> TextTraining:
        """Refuses settings of no use to the method; asks for those that it needs."""
        if found := list(self._refusals()):
            raise refuse(found)
        return self

    def _refusals(self) -> Iterator[Refusal]:
        method = METHODS[self.method]
        for key in sorted(method.required):
            if getattr(self, key) is None:
                fix = REQUIRED_FIXES[key]
                yield Refusal(key, f"is required by method: {self.method}", fix, ("method",))
        for key in sorted(OWN_SETTINGS - method.settings):
            if getattr(self, key) != type(self).model_fields[key].default:
                users = [name for name, other in METHODS.items() if key in other.settings]
                fix = f"remove it, or set method: {' or '.join(users)}"
                yield Refusal(key, f"is of no use to method: {self.method}", fix, ("method",))


REQUIRED_FIXES = {"reward": "write module:function"}
"""What to write where a setting is missing that a method cannot do without."""
