"""OpenAI's embedding requests, read and checked field by field.

Knows nothing of models, servers or Ray. Names and limits are those of OpenAI's API reference;
`truncate_prompt_tokens` is vLLM's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from truthgpt_serve.errors import RequestError
from truthgpt_serve.http.json_body import as_whole, bad_field, kind_of, parse_model, shown

FORMATS = ("float", "base64")


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """A request for embeddings, checked.

    Attributes:
        model: The model name of the request.
        inputs: For each text what the class gets: `text` or `token_ids`, and the fields that the
            request has.
        base64: Whether the vectors are wanted as base64 of little-endian float32.
        has_token_ids: Whether a text comes as token ids.
        dimensions: Values wanted of each vector, or None for all.
    """

    model: str
    inputs: list[dict[str, Any]]
    base64: bool
    has_token_ids: bool
    dimensions: int | None


def parse_embedding(body: Mapping[str, Any]) -> EmbeddingRequest:
    """Checks a body of `POST /v1/embeddings`.

    Raises:
        RequestError: A field is missing or wrong; `param` names it.
    """
    model = parse_model(body)
    texts = _inputs(body.get("input"))
    encoding = body.get("encoding_format")
    if encoding is not None and encoding not in FORMATS:
        raise bad_field("encoding_format", f"must be float or base64, not {shown(encoding)}")
    dimensions = _whole(body, "dimensions", low=1)
    shared = {"dimensions": dimensions} if dimensions is not None else {}
    truncate = _whole(body, "truncate_prompt_tokens", low=-1)
    if truncate == 0:
        raise bad_field("truncate_prompt_tokens", "must be -1 or at least 1, not 0")
    if truncate is not None:
        shared["truncate_prompt_tokens"] = truncate
    return EmbeddingRequest(
        model=model,
        inputs=[{**text, **shared} for text in texts],
        base64=encoding == "base64",
        has_token_ids=any("token_ids" in text for text in texts),
        dimensions=dimensions,
    )


def _inputs(value: Any) -> list[dict[str, Any]]:
    if value is None:
        raise bad_field("input", "is required")
    if isinstance(value, str):
        return [_text(value, "input")]
    if not isinstance(value, list):
        raise bad_field("input", f"must be a string or a list, not {kind_of(value)}")
    if not value:
        raise bad_field("input", "must hold at least one text")
    if (ids := _token_ids(value)) is not None:
        return [{"token_ids": ids}]
    return [_item(item, f"input[{index}]") for index, item in enumerate(value)]


def _item(item: Any, place: str) -> dict[str, Any]:
    if isinstance(item, str):
        return _text(item, place)
    if isinstance(item, list) and item and (ids := _token_ids(item)) is not None:
        return {"token_ids": ids}
    raise bad_field(
        place, f"must be a string or a list of token ids that is not empty, not {kind_of(item)}"
    )


def _text(text: str, place: str) -> dict[str, Any]:
    if not text:
        raise bad_field(place, "must not be an empty string")
    return {"text": text}


def _token_ids(value: list[Any]) -> list[int] | None:
    ids = [whole for item in value if (whole := as_whole(item)) is not None]
    if len(ids) < len(value):
        return None
    if any(item < 0 for item in ids):
        raise RequestError("`input` holds a negative token id", param="input")
    return ids


def _whole(body: Mapping[str, Any], name: str, *, low: int) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    whole = as_whole(value)
    if whole is None or whole < low:
        raise bad_field(name, f"must be a whole number of at least {low}, not {shown(value)}")
    return whole
