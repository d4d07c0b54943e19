"""OpenAI's embedding requests; `truncate_prompt_tokens` is vLLM's."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from truthgpt_serve.request_schema import Count, FullText, NonNegative, RequestModel, Via, Wanted

TokenIds = Annotated[list[NonNegative], Field(min_length=1, fail_fast=True)]


def _kind(value: Any) -> str:
    if not isinstance(value, list):
        return "<text>"
    return "<token ids>" if value and type(value[0]) in (int, float) else "<several>"


def _items(value: Any) -> list[str | list[int]]:
    return [value] if isinstance(value, str) or isinstance(value[0], int) else value


_Input = Annotated[
    Annotated[FullText, Wanted("a string or a list that is not empty"), Tag("<text>")]
    | Annotated[
        TokenIds, Wanted("a list of strings or of token ids of at least 0"), Tag("<token ids>")
    ]
    | Annotated[
        list[
            Annotated[
                FullText | TokenIds, Wanted("a string or a list of token ids that is not empty")
            ]
        ],
        Field(min_length=1, fail_fast=True),
        Tag("<several>"),
    ],
    Discriminator(_kind),
]


class EmbeddingRequest(RequestModel):
    """A body of `POST /v1/embeddings`."""

    model: FullText
    input: Annotated[list[str | list[int]], Via(_Input, _items)]
    """The texts, or their token ids."""

    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Count | None = None
    truncate_prompt_tokens: Annotated[Literal[-1] | Count, Wanted("-1 or at least 1")] | None = None

    @cached_property
    def inputs(self) -> list[dict[str, Any]]:
        """For each text what the class gets: `text` or `token_ids`, and the fields it may read."""
        names = ("dimensions", "truncate_prompt_tokens")
        shared = {name: value for name in names if (value := getattr(self, name)) is not None}
        return [
            {"text" if isinstance(item, str) else "token_ids": item, **shared}
            for item in self.input
        ]

    @property
    def has_token_ids(self) -> bool:
        """Whether a text comes as token ids."""
        return any("token_ids" in inputs for inputs in self.inputs)
