"""Settings of the `training` section that only some methods read, and what each method needs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, model_validator

from truthgpt_serve.config.base import (
    FUNCTION_PATTERN,
    Count,
    NonNegativeNumber,
    PositiveNumber,
    Refusal,
    Text,
    refuse,
)
from truthgpt_serve.config.training.methods import METHODS, OWN_SETTINGS
from truthgpt_serve.config.training.schedule import Schedule


class TextTraining(Schedule):
    """The settings that only some methods read."""

    reward: Annotated[str, Field(pattern=FUNCTION_PATTERN)] | None = None
    """Reward function of `grpo` and `ppo` as `module:function`, found in the working directory and
    beside this file too. It takes `prompts`, `completions` and the data's other columns as lists by
    keyword, and returns a number for each completion."""

    reward_model: Text | None = None
    """Model that scores the answers of `grpo` and `ppo` in place of a function: the result of
    `method: reward`, or another with one output. A hub name or a folder, looked up like
    `model.name_or_path`."""

    beta: NonNegativeNumber = 0.1
    """Weight of staying close to the model before training (`dpo`, `kto`, `grpo`, `ppo`), or of
    preferring the chosen answer (`orpo`). More changes the model less, with `orpo` more; 0 in
    `grpo` and `ppo` leaves the comparison, and its memory, out."""

    desirable_weight: PositiveNumber = 1.0
    """Weight of good answers in the loss of `kto`. More makes up for few of them."""

    undesirable_weight: PositiveNumber = 1.0
    """Weight of bad answers in the loss of `kto`. More makes up for few of them."""

    num_generations: Annotated[int, Field(ge=2)] = 8
    """Answers that `grpo` and `ppo` sample for each prompt; `grpo` compares them. More compares
    better and takes longer. The examples of an optimizer step must be a multiple of it."""

    max_new_tokens: Count = 256
    """Longest answer that `grpo` and `ppo` sample, in tokens. More takes more time and memory."""

    num_ppo_epochs: Count = 4
    """Optimizer steps that `ppo` makes with the same sampled answers. More learns more from each
    sampling, which takes most of the time, and less safely."""

    gae_lambda: Annotated[float, Field(ge=0, le=1)] = 0.95
    """How much of what follows a token `ppo` credits it with. 1 is the whole reward of the answer,
    which varies most; less relies more on the values that it learns."""

    vf_coef: NonNegativeNumber = 0.1
    """Weight of learning the values in the loss of `ppo`. More learns them faster and changes the
    model more for their sake."""

    embedding_loss: Literal["auto", "ranking", "triplet", "cosine"] = "auto"
    """Loss of `embedding`: `ranking` tells the positive of a text from all others of its batch,
    `triplet` from its own negative by `triplet_margin`, `cosine` fits a score. `auto` is `cosine`
    for scored pairs and else `ranking`."""

    pooling: Literal["mean", "cls", "lasttoken"] | None = None
    """How `embedding` makes one vector of a text's tokens. Null takes what the model's
    `1_Pooling/config.json` says, else `mean`, for decoders `lasttoken`."""

    similarity_scale: PositiveNumber = 20.0
    """Factor on the cosine in the `ranking` loss of `embedding`. More looks at the hardest texts of
    the batch more closely."""

    triplet_margin: PositiveNumber = 0.5
    """How much nearer, by the cosine, a positive must be than the negative before the `triplet`
    loss of `embedding` is 0. More pushes them further apart."""

    @model_validator(mode="after")
    def _check_method(self) -> TextTraining:
        """Refuses settings of no use to the method; asks for those that it needs."""
        if found := list(self._refusals()):
            raise refuse(found)
        return self

    def _refusals(self) -> Iterator[Refusal]:
        method = METHODS[self.method]
        given = [key for key in method.needs_one_of if getattr(self, key) is not None]
        if method.needs_one_of and not given:
            key, *others = method.needs_one_of
            fix = " or ".join(["write module:function", *(f"set {other}" for other in others)])
            yield Refusal(key, f"is required by method: {self.method}", fix, ("method", *others))
        for key in given[1:]:
            yield Refusal(key, f"is given together with {given[0]}", "remove one", (given[0],))
        for key in sorted(OWN_SETTINGS - method.settings):
            if getattr(self, key) != type(self).model_fields[key].default:
                users = [name for name, other in METHODS.items() if key in other.settings]
                fix = f"remove it, or set method: {' or '.join(users)}"
                yield Refusal(key, f"is of no use to method: {self.method}", fix, ("method",))
