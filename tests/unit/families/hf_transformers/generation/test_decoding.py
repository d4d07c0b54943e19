"""Texts of tokens, and which special tokens stay in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizers import AddedToken

from deployments.hf_transformers.generation.decoding import TextDecoder

STORY = Path(__file__).parents[5] / "models" / "story"
MISTRAL = """{%- for tool in tools or [] %}{{- tool | tojson }}{%- endfor %}
{%- for message in messages %}{{- message.content or '' }}
{%- for call in message.tool_calls or [] %}
{{- '[TOOL_CALLS]' + call.function.name + '[ARGS]' + (call.function.arguments | tojson) }}
{%- endfor %}{%- endfor %}"""
TEXT = 'Once.[TOOL_CALLS]add[ARGS]{"a": 1}'


@pytest.fixture
def tokenizer() -> Any:
    tokenizer = transformers.AutoTokenizer.from_pretrained(STORY)
    marks = [AddedToken(mark, special=True) for mark in ("[TOOL_CALLS]", "[ARGS]", "[INST]")]
    tokenizer.add_tokens(marks)
    return tokenizer


def test_marks_of_calls_stay(tokenizer: Any) -> None:
    tokens = tokenizer.encode(f"[INST]{TEXT}</s>", add_special_tokens=False)
    plain = TEXT.replace("[TOOL_CALLS]", "").replace("[ARGS]", "")
    assert TextDecoder(tokenizer)(tokens).strip() == plain
    tokenizer.chat_template = MISTRAL
    assert TextDecoder(tokenizer)(tokens).strip() == TEXT
    tokenizer.chat_template = MISTRAL.replace("{%- for tool in tools", "{%- for tool in none")
    assert TextDecoder(tokenizer)(tokens).strip() == plain


def test_a_tokenizer_without_a_template(tokenizer: Any) -> None:
    tokenizer.chat_template = None
    tokens = tokenizer.encode("Once upon a time", add_special_tokens=False)
    assert TextDecoder(tokenizer)(tokens).strip() == "Once upon a time"
