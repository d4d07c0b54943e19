"""Request models: the kinds of fields, hostile values, and one wording for each kind of fault."""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from truthgpt_serve.errors import RequestError, UnsupportedError
from truthgpt_serve.request_fields import AdapterWeights
from truthgpt_serve.request_schema import (
    Count,
    FullText,
    RequestModel,
    Wanted,
    Whole,
    read_request,
    read_text,
    refuse_unknown,
    unsupported_unless,
)
from truthgpt_serve.server.embeddings.request import EmbeddingRequest
from truthgpt_serve.server.text.messages import MAX_ITEMS
from truthgpt_serve.server.text.request import ChatRequest, CompletionRequest, parse_text


class Inner(RequestModel):
    name: FullText


class Adapters(RequestModel):
    adapters: AdapterWeights


class Sample(RequestModel):
    whole: Whole | None = None
    count: Count | None = None
    share: Annotated[float, Field(gt=0, le=1)] | None = None
    flag: bool = False
    text: Annotated[FullText, Field(max_length=3)] | None = None
    word: Literal["a", "b"] = "a"
    inner: list[Inner] | None = None
    pair: Annotated[str | list[str], Wanted("a string or a list of strings")] | None = None
    only: Annotated[Any, unsupported_unless(lambda value: value in (None, 1), "gives one")] = None


@pytest.mark.parametrize(
    ("value", "whole"),
    [
        (2, 2), (2.0, 2), (-3.0, -3), (2.0**53, 2**53), (2**70, 2**70), (1.5, None),
        (2.0**54, None), (float("inf"), None), (float("nan"), None), (True, None), ("2", None),
        ([2], None),
    ],
)  # fmt: skip
def test_whole_numbers(value: Any, whole: int | None) -> None:
    if whole is None:
        with pytest.raises(RequestError, match="`whole` must be a whole number, not "):
            read_request(Sample, {"whole": value})
        return
    assert repr(read_request(Sample, {"whole": value}).whole) == repr(whole)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"count": 0.0}, "`count` must be at least 1, not 0"),
        ({"share": 0}, "`share` must be more than 0, not 0"),
        ({"share": 10**400}, "`share` must be a number, not a larger number"),
        ({"share": float("inf")}, "`share` must be a finite number, not inf"),
        ({"share": True}, "`share` must be a number, not true"),
        ({"flag": 1}, "`flag` must be true or false, not 1"),
        ({"text": ""}, "`text` must not be empty"),
        ({"text": "abcd"}, "`text` must have at most 3 characters, not 4"),
        ({"text": "\ud800"}, "`text` is not valid Unicode"),
        ({"text": ["a"]}, "`text` must be a string, not a list"),
        ({"word": "x" * 100}, f"`word` must be one of a, b, not {'x' * 40!r}…"),
        ({"inner": {}}, "`inner` must be a list, not an object"),
        ({"inner": [3]}, "`inner[0]` must be an object, not 3"),
        ({"inner": [{}]}, "`inner[0].name` is required"),
        ({"pair": [1]}, "`pair` must be a string or a list of strings, not a list"),
    ],
)
def test_one_wording_for_each_kind_of_fault(body: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError) as caught:
        read_request(Sample, body)
    assert caught.value.message == message
    assert caught.value.param == message.split("`")[1]
    assert (caught.value.status, caught.value.code) == (400, None)


def test_null_stands_for_a_missing_field_and_unknown_ones_are_left_out() -> None:
    body = dict.fromkeys(("whole", "count", "share", "text", "inner", "pair", "only"))
    assert read_request(Sample, {**body, "zzz": 1}) == Sample()


def test_what_only_other_servers_honor_is_refused() -> None:
    assert read_request(Sample, {"only": 1}).only == 1
    with pytest.raises(UnsupportedError, match="`only` is 2, but this model gives one"):
        read_request(Sample, {"only": 2})


def test_an_unknown_field_names_the_nearest_or_all() -> None:
    refuse_unknown(["count"], Sample.model_fields)
    for name, meant, hint in (
        ("cuont", {}, "did you mean `count`?"),
        ("num", {"num": "count"}, "did you mean `count`?"),
        ("num", {"num": "gone"}, "the fields are whole, count, "),
    ):
        with pytest.raises(RequestError) as caught:
            refuse_unknown(["flag", name], Sample.model_fields, meant)
        assert caught.value.message.startswith(f"unknown field `{name}`; {hint}")
        assert (caught.value.param, caught.value.code) == (name, "unknown_parameter")
    with pytest.raises(RequestError) as caught:
        refuse_unknown(["x" * 10_000_000], Sample.model_fields)
    assert len(caught.value.message) < 300


@pytest.mark.parametrize(
    ("annotation", "text", "value"),
    [
        (int | None, "2", 2), (int, "2.0", "2.0"), (int, "1e3", "1e3"), (int, " 2", " 2"),
        (float, "0.5", 0.5), (float, "nan", "nan"), (bool, "TRUE", True), (bool, "yes", "yes"),
        (str, "true", "true"), (list[str], "a", ["a"]), (list[str], '["a"]', ["a"]),
        (list[str], "[" * 100_000, "[" * 100_000), (None, "1", "1"),
    ],
)  # fmt: skip
def test_what_a_forms_text_stands_for(annotation: Any, text: str, value: Any) -> None:
    assert repr(read_text(annotation, text)) == repr(value)


def test_requests_hold_whole_numbers_as_such() -> None:
    body = {"model": "m", "prompt": "p", "max_tokens": 4.0, "top_k": 5.0, "n": 1.0, "seed": 7.0}
    request = parse_text(CompletionRequest, body)
    assert repr(request.max_new_tokens) == "4"
    assert repr(sorted(request.sampling.items())) == "[('seed', 7), ('top_k', 5)]"
    for ids in ([1.0, 2], [[1.0, 2]]):
        found = read_request(EmbeddingRequest, {"model": "m", "input": ids, "dimensions": 8.0})
        assert repr(found.inputs) == "[{'token_ids': [1, 2], 'dimensions': 8}]"


def chat(messages: Any, **fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": messages, **fields}


LONG = "x" * 20_000_000
MANY = 200_000
USER = {"role": "user", "content": "a"}
HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "long role": (chat([{**USER, "role": LONG}]), "messages[0].role"),
    "long name of a field": (chat([{**USER, LONG: 1}]), f"messages[0].{LONG[:80]}"),
    "many fields": (
        chat([{**USER, **{f"k{number}": 1 for number in range(MANY)}}]),
        "messages[0].k0",
    ),
    "many messages": (chat([3] * MANY), "messages"),
    "many parts": (chat([{**USER, "content": [3] * MANY}]), "messages"),
    "wrong messages": (chat([3] * MAX_ITEMS), "messages[0]"),
    "wrong parts": (
        chat([{**USER, "content": [3] * (MAX_ITEMS - 1)}]),
        "messages[0].content[0]",
    ),
    "many wrong stops": (chat([USER], stop=[1] * MANY), "stop"),
    "half a pair as a name": (chat([{**USER, "\ud800": 1}]), "messages[0]"),
    "infinite": (chat([USER], temperature=float("inf")), "temperature"),
    "not a number": (chat([USER], top_p=float("nan")), "top_p"),
}


@pytest.mark.parametrize(("body", "param"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_bodies_get_short_answers_soon(body: dict[str, Any], param: str) -> None:
    started = time.monotonic()
    with pytest.raises(RequestError) as caught:
        parse_text(ChatRequest, body)
    assert time.monotonic() - started < 3
    assert (caught.value.status, caught.value.param) == (400, param)
    assert len(caught.value.message) < 250


def test_deep_values_are_refused_by_their_fields() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for body, param in (
        (chat(deep), "messages[0]"),
        (chat([{**USER, "content": deep}]), "messages[0].content[0]"),
        (chat([USER], temperature=deep), "temperature"),
        (chat([USER], tools=deep), "tools[0]"),
    ):
        with pytest.raises(RequestError) as caught:
            parse_text(ChatRequest, body)
        assert caught.value.param == param


def test_an_object_with_too_many_members_is_not_looked_into() -> None:
    body = {"adapters": dict.fromkeys(map(str, range(MANY)), "x")}
    with pytest.raises(RequestError, match="`adapters` must have at most 32 items, not 200000"):
        read_request(Adapters, body)
