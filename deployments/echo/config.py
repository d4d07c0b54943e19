"""The settings and the registry entry of the family `echo`; imports no other part of it."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from truthgpt_serve.contract import FamilySpec


class EchoSettings(BaseModel):
    """What `serving.engine` may say for `family: echo`."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    tokens_per_second: Annotated[float, Field(gt=0)] | None = None
    """Tokens a second for each request; null with no `token_interval_s` either means at once."""
    token_interval_s: Annotated[float, Field(ge=0)] | None = None
    """The same as seconds between tokens; give one of the two."""
    time_to_first_token_s: Annotated[float, Field(ge=0)] | None = None
    """Seconds before the first token, as a long prefill would take; by default one interval."""
    num_tokens: Annotated[int, Field(ge=1)] = 16
    """Tokens of an answer when the request does not say."""
    fail_after: Annotated[int, Field(ge=0)] | None = None
    """Tokens after which every answer fails with an error, for tests of error paths."""

    @model_validator(mode="after")
    def _one_rate(self) -> EchoSettings:
        if self.tokens_per_second is not None and self.token_interval_s is not None:
            raise ValueError("give tokens_per_second or token_interval_s, not both")
        return self

    @property
    def interval_s(self) -> float:
        """Seconds between tokens."""
        if self.tokens_per_second is not None:
            return 1 / self.tokens_per_second
        return self.token_interval_s or 0.0


FAMILY = FamilySpec(
    name="echo",
    class_path="deployments.echo.deployment:EchoModel",
    tasks=("text-generation",),
    engine_config=EchoSettings,
    on_event_loop=True,
    uses_gpus=False,
)
