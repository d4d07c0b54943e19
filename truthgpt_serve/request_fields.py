"""The fields of requests that routes and families share, and their limits."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field

from truthgpt_serve.request_schema import (
    WHOLE,
    AtMost,
    FullText,
    NonNegative,
    RequestModel,
    Via,
    Wanted,
    wanted,
)

MAX_STOP = 4096
"""Characters of a stop string: the end of an answer is compared with its beginnings."""


def _as_list(value: Any) -> list[str]:
    stops = [] if value is None else [value] if isinstance(value, str) else value
    if any(len(stop) > MAX_STOP for stop in stops):
        raise wanted(f"a string or a list of strings, each of at most {MAX_STOP} characters")
    return stops


Stops = Annotated[
    list[str],
    Via(
        Annotated[
            FullText | Annotated[list[FullText], Field(fail_fast=True)] | None,
            Wanted("a string or a list of strings, none of them empty"),
        ],
        _as_list,
    ),
]
"""Texts that end an answer; a request may give one as it is."""


LEAST_TEMPERATURE = 0.01
"""What smaller ones count as, but for 0: logits divided by them are no numbers any more."""
LEAST_REPETITION_PENALTY = 0.01


def _computable(temperature: float) -> float:
    return max(temperature, LEAST_TEMPERATURE) if temperature > 0 else 0.0


class SamplingFields(RequestModel):
    """How the tokens of a text are chosen; those that OpenAI does not have are vLLM's."""

    temperature: Annotated[float, Field(ge=0, le=2), AfterValidator(_computable)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1), WHOLE] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    min_tokens: NonNegative | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1), WHOLE] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(ge=LEAST_REPETITION_PENALTY, le=10)] | None = None
    ignore_eos: bool | None = None

    @property
    def sampling(self) -> dict[str, Any]:
        """The fields that the request has."""
        return {name: value for name in SAMPLING if (value := getattr(self, name)) is not None}


SAMPLING = tuple(SamplingFields.model_fields)
"""The names of these fields."""


MAX_SEED = 2**53 - 1
"""The largest seed of an image: every JSON reader keeps it exactly."""
MAX_STEPS = 1000
"""Denoising steps: that many timesteps are what diffusion models are trained with."""
MAX_GUIDANCE_SCALE = 100
MAX_PARTIAL_IMAGES = 3
MAX_ADAPTERS = 32
MAX_ADAPTER_WEIGHT = 100

Seed = Annotated[int, Field(ge=0, le=MAX_SEED), WHOLE]
Steps = Annotated[int, Field(ge=1, le=MAX_STEPS), WHOLE]
GuidanceScale = Annotated[float, Field(ge=0, le=MAX_GUIDANCE_SCALE)]
Strength = Annotated[float, Field(gt=0, le=1)]
ControlScale = Annotated[float, Field(ge=0, le=2)]
PartialImages = Annotated[int, Field(ge=0, le=MAX_PARTIAL_IMAGES), WHOLE]
AdapterWeights = Annotated[
    dict[str, Annotated[float, Field(ge=-MAX_ADAPTER_WEIGHT, le=MAX_ADAPTER_WEIGHT)]],
    AtMost(MAX_ADAPTERS),
]
