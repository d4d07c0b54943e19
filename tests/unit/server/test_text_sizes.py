"""Texts that take long to read are refused before anything reads them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from truthgpt_serve.config.text_limits import TextLimitsSection
from truthgpt_serve.errors import ContextLengthError, RequestError
from truthgpt_serve.server.text_limits import TextLimits
from truthgpt_serve.server.text_sizes import MAX_CHARACTERS, MAX_WORD, check_beginning

LIMITS = TextLimits(TextLimitsSection())
CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"


def check(path: str, body: dict[str, Any]) -> None:
    LIMITS.check(path, json.dumps(body).encode(), body)


@pytest.mark.parametrize(("size", "refused"), [(32_768, False), (32_769, True), (10**7, True)])
def test_of_a_text_far_too_long_the_beginning_alone_is_read(size: int, refused: bool) -> None:
    read: list[int] = []

    def count(part: str) -> int:
        read.append(len(part))
        return len(part) // 4

    if refused:
        with pytest.raises(ContextLengthError, match="requested 8192 tokens") as caught:
            check_beginning("x" * size, 100, count, param="prompt")
        assert caught.value.param == "prompt"
    else:
        check_beginning("x" * size, 100, count, param="prompt")
    assert sum(read) <= 32_768


def test_a_long_text_of_long_tokens_is_read_on() -> None:
    read: list[int] = []

    def count(part: str) -> int:
        read.append(len(part))
        return len(part) // 1000

    check_beginning("x" * 10**5, 100, count, param="prompt")
    assert read == [32_768]
    read.clear()
    with pytest.raises(ContextLengthError):
        check_beginning("x" * 10**7, 100, count, param="prompt")
    assert read == [32_768, 262_144]


def test_a_text_of_few_tokens_is_not_read_whatever_its_length() -> None:
    read: list[int] = []

    def count(part: str) -> int:
        read.append(len(part))
        return 1

    check_beginning("x" * MAX_WORD, 100, count, param="input")
    read.clear()
    with pytest.raises(RequestError, match="has 1048577 characters, but at most 1048576") as caught:
        check_beginning("x" * (MAX_WORD + 1), 100, count, param="input")
    assert caught.value.param == "input"
    assert max(read) < MAX_WORD
    check_beginning("x" * 6_000_000, 200_000, count, param="input")


LONG = "x" * MAX_CHARACTERS


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/completions", {"prompt": f"{LONG}x", "truncate_prompt_tokens": 5}, None),
        ("/v1/embeddings", {"input": ["x", LONG], "truncate_prompt_tokens": -1}, None),
        (CHAT, {"messages": [{"content": LONG + "x"}], "truncate_prompt_tokens": 9}, None),
        ("/tokenize", {"prompt": f"{LONG}x"}, "prompt"),
        ("/tokenize", {"messages": [{"role": "user", "content": f"{LONG}x"}]}, "messages"),
    ],
)
def test_texts_that_are_read_whatever_their_length(
    path: str, body: dict[str, Any], param: str | None
) -> None:
    with pytest.raises(RequestError) as caught:
        check(path, body)
    assert caught.value.param == (param or "truncate_prompt_tokens")
    assert str(MAX_CHARACTERS) in caught.value.message


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": f"{LONG}x"}),
        ("/v1/completions", {"prompt": LONG, "truncate_prompt_tokens": 5}),
        ("/v1/embeddings", {"input": f"{LONG}x", "truncate_prompt_tokens": None}),
        ("/tokenize", {"prompt": LONG}),
        ("/detokenize", {"tokens": [7_000_000] * 500_000}),
    ],
)
def test_texts_that_something_else_bounds_pass(path: str, body: dict[str, Any]) -> None:
    check(path, body)


def chat(arguments: Any) -> dict[str, Any]:
    call = {"id": "c", "function": {"name": "f", "arguments": arguments}}
    return {"messages": [{"role": "user"}, {"role": "assistant", "tool_calls": [5, call]}]}


DEEP = '{"a":' * 201 + "1" + "}" * 201
ODD: list[Any] = [None, 5, "", "no JSON", "{}" * 300, DEEP[5:-1], '{"a": "' + "[" * 999 + '"}', "]"]


@pytest.mark.parametrize(
    ("path", "body", "place"),
    [
        (CHAT, chat(DEEP), "messages[1].tool_calls[1].function"),
        (CHAT, chat("[" * 100_000), "messages[1].tool_calls[1].function"),
        (CHAT, {"messages": [{"function_call": {"arguments": DEEP}}]}, "messages[0].function_call"),
        (RESPONSES, {"input": [{"type": "function_call", "arguments": DEEP}]}, "input[0]"),
    ],
)
def test_arguments_nested_too_deeply(path: str, body: dict[str, Any], place: str) -> None:
    with pytest.raises(RequestError, match="nested deeper than 200") as caught:
        check(path, body)
    assert caught.value.param == f"{place}.arguments"


@pytest.mark.parametrize("arguments", ODD)
def test_other_arguments_are_left_to_the_route(arguments: Any) -> None:
    check(CHAT, chat(arguments))


RERANK, SCORE = "/v1/rerank", "/score"
SHORT = TextLimits(TextLimitsSection(), max_model_len=512)


@pytest.mark.parametrize("cut", ["truncate_prompt_tokens", "max_tokens_per_doc"])
@pytest.mark.parametrize(
    "texts",
    [
        {"query": "x" * 10_000, "documents": ["y"] * 1000},
        {"query": "x", "documents": ["y" * MAX_CHARACTERS]},
        {"query": "x", "documents": {"content": [{"type": "text", "text": "y" * MAX_CHARACTERS}]}},
    ],
)
def test_a_query_counts_with_each_document(cut: str, texts: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=f"`{cut}` is set for texts of") as caught:
        check(RERANK, {**texts, cut: 8})
    assert caught.value.param == cut


def test_a_pair_that_no_model_takes_is_not_tokenized() -> None:
    body = {"text_1": "x" * 16_000, "text_2": ["y", *["y" * 1000] * 400]}
    with pytest.raises(RequestError, match="has 17000 characters with its query") as caught:
        SHORT.check(SCORE, json.dumps(body).encode(), body)
    assert caught.value.param == "text_2[1]"


@pytest.mark.parametrize(
    "body",
    [
        {"text_1": "x" * 1000, "text_2": ["y" * 10_000] * 2000},
        {"text_1": ["x"] * 2000, "text_2": ["y" * 10_000] * 2000},
        {"text_1": "x" * 20_000, "text_2": "y" * 20_000},
        {"text_1": 5, "text_2": [None, {"content": 5}, {"content": [7]}]},
        {"query": "x"},
        {"text_1": "x" * 5_000_000},
        {"queries": ["x" * 5_000_000, {}]},
        {"queries": [], "documents": []},
        {"query": {"content": {"text": "x"}}, "documents": {"content": [{"text": None}]}},
    ],
)
def test_other_pairs_are_left_to_the_model(body: dict[str, Any]) -> None:
    SHORT.check(SCORE, json.dumps(body).encode(), body)
