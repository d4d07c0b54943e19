"""Pydantic's own errors, raised by real models, in plain words."""

from __future__ import annotations

from typing import Any, Literal

import pydantic
import pytest

from deployments.vllm.application.pydantic_text import in_plain_words


class Text(pydantic.BaseModel):
    type: Literal["text"]
    text: str


class Image(pydantic.BaseModel):
    type: Literal["image_url"]
    image_url: dict[str, Any]


class Request(pydantic.BaseModel):
    truncation: Literal["auto", "disabled"] = "auto"
    parts: list[Text | Image] = []


def text_of(value: Any) -> str:
    with pytest.raises(pydantic.ValidationError) as caught:
        Request.model_validate(value)
    return str(caught.value)


def test_one_fault() -> None:
    message, field = in_plain_words(text_of({"truncation": None}))
    assert message == "`truncation`: Input should be 'auto' or 'disabled'"
    assert field == "truncation"


def test_many_faults() -> None:
    message, field = in_plain_words(text_of({"parts": [{"type": "text", "text": None}, 5]}))
    assert message.startswith("`parts.0.text`: Input should be a valid string; `parts.0.type`: ")
    assert message.endswith(" more")
    assert field == "parts.0.text"
    for words in ("pydantic", "input_value", "NoneType", "\n"):
        assert words not in message


def test_words_in_front_stay_and_other_messages_too() -> None:
    message, _ = in_plain_words("Wrong request: " + text_of({"truncation": None}))
    assert message.startswith("Wrong request: `truncation`: ")
    for other in ("", "no such thing", "2 validation errors", "a\nb [type=x]"):
        assert in_plain_words(other) == (other, None)
