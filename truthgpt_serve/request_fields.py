"""The fields of requests that routes and families share, and their limits."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from truthgpt_serve.request_model import (
    WHOLE,
    FullText,
    NonNegative,
    RequestModel,
    Via,
    Wanted,
)


def _as_list(value: Any) -> list[str]:
    return [] if value is None else [value] if isinstance(value, str) else value


Stops = Annotated[
    list[str],
    Via(
        Annotated[
            FullText | list[FullText] | None,
            Wanted("a string or a list of strings, none of them empty"),
        ],
        _as_list,
    ),
]
"""Texts that end an answer; a request may give one as it is."""


class SamplingFields(RequestModel):
    """How the tokens of a text are chosen; those that OpenAI does not have are vLLM's."""

    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1), WHOLE] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    min_tokens: NonNegative | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1), WHOLE] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    ignore_eos: bool | None = None

    @property
    def sampling(self) -> dict[str, Any]:
        """The fields that the request has."""
        return {name: value for name in _SAMPLING if (value := getattr(self, name)) is not None}


_SAMPLING = tuple(SamplingFields.model_fields)
