"""The settings and the registry entry of the family `echo`; imports no other part of it."""

from __future__ import annotations

from pydantic import model_validator

from truthgpt_serve.config.base import (
    Count,
    NonNegativeCount,
    NonNegativeSeconds,
    PositiveNumber,
    Section,
)
from truthgpt_serve.contract import FamilySpec


class EchoSettings(Section):
    """What `serving.engine` may say for `family: echo`."""

    tokens_per_second: PositiveNumber | None = None
    """Tokens a second for each request; null with no `token_interval_s` either means at once."""
    token_interval_s: NonNegativeSeconds | None = None
    """The same as seconds between tokens; give one of the two."""
    time_to_first_token_s: NonNegativeSeconds | None = None
    """Seconds before the first token, as a long prefill would take; by default one interval."""
    num_tokens: Count = 16
    """Tokens of an answer when the request does not say."""
    fail_after: NonNegativeCount | None = None
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
