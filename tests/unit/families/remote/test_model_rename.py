"""Model names in requests and answers: the bytes of the name change, and no others."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.remote import model_rename
from deployments.remote.model_rename import AnswerNames, find_model, find_model_aside
from truthgpt_serve.errors import RequestError
from truthgpt_serve.http.model_key import MAX_DECODED_BYTES

JSON = b"application/json"


@pytest.mark.parametrize(
    ("body", "name", "expected"),
    [
        (b'{"model":"far"}', "far", b'{"model":"there"}'),
        (
            b' { "a" : [1, {"model": "x"}] ,\n"model"\t: "far" , "b": 1e5 } ',
            "far",
            b' { "a" : [1, {"model": "x"}] ,\n"model"\t: "there" , "b": 1e5 } ',
        ),
        (b'{"mod\\u0065l":"f\\u0061r"}', "far", b'{"mod\\u0065l":"there"}'),
        (b'{"x":"\\"model","model":"far"}', "far", b'{"x":"\\"model","model":"there"}'),
        (
            b'{"\\"model":"a\\\\","z":"model","model":"far","y":"\\"model\\": \\"q\\""}',
            "far",
            b'{"\\"model":"a\\\\","z":"model","model":"there","y":"\\"model\\": \\"q\\""}',
        ),
        (b'{"n":{"model":"in"}}', None, None),
        (b'{"model":null}', None, None),
        (b"", None, None),
    ],
)
def test_the_name_in_json(
    body: bytes, name: str | None, expected: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for limit in (MAX_DECODED_BYTES, -1):
        monkeypatch.setattr(model_rename, "MAX_DECODED_BYTES", limit)
        found = find_model(body, JSON)
        assert found.name == name
        if expected is not None:
            assert found.renamed("there") == expected


def test_a_name_that_json_has_to_escape() -> None:
    assert find_model(b'{"model":"a"}', JSON).renamed('ä"\n') == '{"model":"ä\\"\\n"}'.encode()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"model":"a","model":"b"}', "`model` is given twice: send it once"),
        (b'{"model":"a","mode\\u006c":"b"}', "`model` is given twice: send it once"),
        (b'{"model":1}', "`model` must be a string"),
        (b'["model"]', "the request body must be a JSON object"),
        (b'{"model":"a"', "the request body is not valid JSON: Input data was truncated"),
        (b'{"model":"a","x":NaN}', "the request body is not valid JSON: "),
        (b"[" * 100_000, "the request body must be a JSON object"),
        (b'{"a":' * 100_000, "the request body is not valid JSON: it is nested too deeply"),
        (b"model=a", "the request body is not valid JSON: "),
        (b'{"model":"\xff"}', "the request body is not valid JSON: "),
    ],
)
def test_a_body_that_another_reader_could_take_otherwise_is_refused(
    body: bytes, message: str
) -> None:
    with pytest.raises(RequestError) as caught:
        find_model(body, JSON)
    assert caught.value.message.startswith(message)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"model":"a","model":"b"}', "`model` is given twice: send it once"),
        (b'{"model":1}', "`model` must be a string of at most 8192 bytes"),
        (b'{"model":"%b"}' % (b"a" * 9000), "`model` must be a string of at most 8192 bytes"),
        (b'["model"]', "the request body must be a JSON object"),
        (b'{"model":"a"', "the request body is not valid JSON"),
        (b'{"model":"a", "b": "x}', "the request body is not valid JSON"),
        (b'{"model":"a","x":NaN}', "the request body is not valid JSON"),
        (b'{/*"*/"model":"a"/*"*/}', "the request body is not valid JSON"),
        (b'{\'\\"\':1,"model":"a"}', "the request body is not valid JSON"),
        (b'{"model":"\xff"}', "the request body is not valid JSON: "),
    ],
)
def test_a_body_that_is_too_large_to_decode_is_refused_too(
    body: bytes, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_rename, "MAX_DECODED_BYTES", -1)
    with pytest.raises(RequestError) as caught:
        find_model(body, JSON)
    assert caught.value.message.startswith(message)


@pytest.mark.parametrize("kind", ["object", "form"])
async def test_a_large_body_lets_other_requests_go_on(kind: str) -> None:
    if kind == "object":
        content_type = JSON
        body = b'{"a": [%b1], "model": "far"}' % (b'{"model":1},' * 700_000)
    else:
        body, content_type = form([("x", (None, "y"))] * 4000 + [("model", (None, "far"))])
    turns = 0

    async def turn() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    other = asyncio.create_task(turn())
    found = await find_model_aside(body, content_type)
    other.cancel()
    assert found.name == "far"
    assert turns > 3


def test_a_form_of_very_many_parts_is_refused() -> None:
    body, content_type = form([("x", (None, "y"))] * 4097)
    with pytest.raises(RequestError, match="more than 4096 parts"):
        find_model(body, content_type)


def test_inner_keys_take_little_more_than_other_text() -> None:
    def spent(key: bytes) -> float:
        body = b'{"a": [%b1], "model": "far"}' % (b'{"%b":1},' % key * 80_000)
        began = time.thread_time()
        assert find_model(body, JSON).name == "far"
        return time.thread_time() - began

    usual = min(spent(b"madel") for _ in range(3))
    assert min(spent(b"model") for _ in range(3)) < 8 * usual


TEXTS = st.one_of(st.text(), st.sampled_from(['"model"', '\\"model', '"model": "far"', "model"]))
VALUES = st.recursive(
    st.one_of(st.none(), st.integers(), TEXTS),
    lambda inner: st.one_of(st.lists(inner), st.dictionaries(TEXTS, inner)),
    max_leaves=12,
)


@given(
    members=st.lists(st.tuples(TEXTS.filter(lambda key: key != "model"), VALUES), max_size=5),
    at=st.integers(0, 5),
    spaced=st.booleans(),
    plain=st.booleans(),
)
def test_any_object_keeps_all_but_its_name(
    members: list[tuple[str, Any]], at: int, spaced: bool, plain: bool
) -> None:
    separators = (" , ", " : ") if spaced else (",", ":")

    def write(value: Any) -> str:
        return json.dumps(value, separators=separators, ensure_ascii=plain).encode(
            errors="replace"
        ).decode()  # fmt: skip

    parts = [f"{write(key)}{separators[1]}{write(value)}" for key, value in members]
    parts.insert(at, f'"model"{separators[1]}"far"')
    body = "{" + separators[0].join(parts) + "}"
    found = find_model(body.encode(), JSON)
    assert found.name == "far"
    parts[min(at, len(members))] = f'"model"{separators[1]}"there"'
    assert found.renamed("there").decode() == "{" + separators[0].join(parts) + "}"


def form(fields: list[tuple[str, Any]]) -> tuple[bytes, bytes]:
    request = httpx.Request("POST", "http://x", files=fields)
    return request.read(), request.headers["content-type"].encode()


def test_the_name_in_a_form() -> None:
    sound = bytes(range(256)) * 40 + b'\r\n--model\r\nname="model"\r\n\r\nfar'
    fields: list[tuple[str, Any]] = [
        ("file", ("model", sound, "audio/wav")),
        ("model", (None, "far")),
        ("prompt", (None, "far")),
    ]
    body, content_type = form(fields)
    found = find_model(body, content_type)
    assert found.name == "far"
    changed = found.renamed("org/there-with-a-longer-name")
    cut = body.rindex(b'name="model"\r\n\r\nfar') + len(b'name="model"\r\n\r\n')
    assert changed == body[:cut] + b"org/there-with-a-longer-name" + body[cut + 3 :]


@pytest.mark.parametrize(
    ("fields", "cut", "message"),
    [
        ([("model", (None, "a")), ("model", (None, "b"))], 0, "`model` is given twice"),
        ([("model", (None, b"\xff"))], 0, "`model` is not valid UTF-8"),
        ([("model", (None, "a"))], 4, "the multipart form ends before its last boundary"),
    ],
)
def test_a_form_that_is_not_clear_is_refused(fields: Any, cut: int, message: str) -> None:
    body, content_type = form(fields)
    with pytest.raises(RequestError, match=message):
        find_model(body[: len(body) - cut], content_type)


def test_a_form_without_a_name_passes() -> None:
    body, content_type = form([("file", ("model", b"x")), ("prompt", (None, "p"))])
    assert find_model(body, content_type).name is None


ANSWER = (
    b'{"x": "\\"model\\": \\"there\\"", "model" : "there", "z": {"model":"there"}, "model":"the'
)
RENAMED = b'{"x": "\\"model\\": \\"there\\"", "model" : "far", "z": {"model":"far"}, "model":"the'


@pytest.mark.parametrize("size", [*range(1, 12), 50, 1000])
def test_an_answer_is_renamed_wherever_it_is_cut(size: int) -> None:
    names = AnswerNames("there", "far")
    found = b"".join(
        names.piece(ANSWER[at : at + size], more=at + size < len(ANSWER))
        for at in range(0, len(ANSWER), size)
    )
    assert found == RENAMED


def test_only_what_may_become_the_name_waits() -> None:
    names = AnswerNames("there", "far")
    for piece in (b'{"model": "other",', b'"a": "there"}', b'"models":', b"12"):
        assert names.piece(piece, more=True) == piece
    assert names.piece(b'1, "mod', more=True) == b"1, "
    assert names.piece(b"e", more=True) == b""
    assert names.piece(b'"', more=False) == b'"mode"'
