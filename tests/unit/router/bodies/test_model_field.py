"""The scanner finds `model` wherever it stands, in whatever pieces the body comes."""

from __future__ import annotations

import json
import random
import time

import pytest

from truthgpt_serve.errors import RequestError
from truthgpt_serve.http.model_key import ModelKey
from truthgpt_serve.router.bodies import model_field as scan_module
from truthgpt_serve.router.bodies.model_field import (
    FormModelScanner,
    JsonModelScanner,
    ModelScanner,
    model_of_json,
    scanner_for,
)


def scan(scanner: ModelScanner, body: bytes, sizes: list[int]) -> tuple[str, int]:
    """Feeds the body in pieces; returns the model and how many bytes were read for it."""
    position = 0
    pieces = []
    while position < len(body):
        size = sizes.pop() if sizes else len(body)
        pieces.append(body[position : position + size])
        model = scanner.feed(pieces[-1])
        position += size
        if model is not None:
            return model, min(position, len(body))
    return scanner.finish(pieces), len(body)


def read_all(scanner: ModelScanner, body: bytes, size: int) -> str:
    """Reads as the router does: up to the name, then watching the rest."""
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    for number, piece in enumerate(pieces, 1):
        model = scanner.feed(piece)
        if model is not None:
            watch = scanner.watch(pieces[:number])
            for rest in pieces[number:]:
                watch(rest)
            return model
    return scanner.finish(pieces)


BODIES = {
    "first": b'{"model": "m", "messages": []}',
    "last": b'{"messages": [{"role": "user", "content": "hi"}], "model": "m"}',
    "only": b'{"model":"m"}',
    "escaped key": b'{"\\u006dodel": "m"}',
    "nested decoys": b'{"a": {"model": "x"}, "b": [{"model": "y"}], "model": "m"}',
    "decoy in a string": b'{"a": "\\"model\\": \\"x\\"", "model": "m"}',
    "white space": b' \n\t{ "a" : 1 ,\r\n "model" : "m" } \n',
    "numbers": b'{"a": -1.5e+10, "b": 0, "c": true, "d": null, "model": "m"}',
    "unicode": '{"a": "\u4f60\u597d\U0001f600", "model": "m"}'.encode(),
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_json_model_is_found_in_any_pieces(body: bytes) -> None:
    assert model_of_json(body) == "m"
    rng = random.Random(0)
    for _ in range(50):
        sizes = [rng.randint(1, 9) for _ in range(len(body))]
        assert scan(JsonModelScanner(), body, sizes)[0] == "m"


ODD = {
    "an integer of 5,000 digits": b"9" * 5000,
    "a number of 5,000 digits": b"-0." + b"9" * 5000,
    "a huge exponent": b"1e" + b"9" * 40,
    "another": b"-1.5E-" + b"9" * 5000,
    "not a number": b"NaN",
    "bytes that are no UTF-8": b'"\xc0\xff"',
    "half a surrogate pair": rb'"\ud800"',
    "a wrong escape": rb'"\uzzzz\x"',
    "a control character": b'"\0"',
    "deep lists": b"[" * 900 + b"]" * 900,
    "endless lists": b"[" * 100_000,
    "deep objects": b'{"":' * 900 + b"1" + b"}" * 900,
    "nothing": b"",
    "a second value": b"1 2",
}


@pytest.mark.parametrize("value", ODD.values(), ids=ODD.keys())
@pytest.mark.parametrize("form", [b'{"a": %b, "model": "m"}', b'{"model": "m", "a": %b}'])
def test_odd_values_end_no_process_and_are_left_to_whoever_reads_the_whole(
    form: bytes, value: bytes
) -> None:
    body = form % value
    try:
        expected = model_of_json(body)
    except RequestError as error:
        expected = f"{type(error).__name__}: {error.message}"
    for size in (1, 7, 100, 4096, 1 << 20):
        try:
            found = read_all(JsonModelScanner(), body, size)
        except RequestError as error:
            found = f"{type(error).__name__}: {error.message}"
        # A name in front of what is wrong is found before that is there.
        assert found in (expected, "m") if form.startswith(b'{"model"') else found == expected


TWICE = {
    "at once": b'{"model": "m", "model": "n"}',
    "the same": b'{"model": "m", "model": "m"}',
    "escaped": b'{"model": "m", "a": 1, "\\u006Dode\\u006c" : "n"}',
    "both escaped": b'{"\\u006dodel": "m", "m\\u006fdel": "n"}',
    "far behind": b'{"model": "m", "a": [{"model": "x"}, "' + b"A" * 5000 + b'"], "model": "n"}',
    "behind quotes": b'{"model": "m", "a": "\\"{[\\\\", "b": "\\\\\\"", "model": "n"}',
}


@pytest.mark.parametrize("body", TWICE.values(), ids=TWICE.keys())
def test_a_second_model_is_refused_whole_and_in_pieces(body: bytes) -> None:
    with pytest.raises(RequestError, match="`model` is given twice") as whole:
        model_of_json(body)
    assert whole.value.param == "model"
    for size in (1, 2, 3, 7, 20, 64, 1000):
        with pytest.raises(RequestError, match="`model` is given twice"):
            read_all(JsonModelScanner(), body, size)


ONCE = {
    "nested": b'{"model": "m", "tools": [{"model": "x", "a": {"model": 1}}], "b": ["model", []]}',
    "a value": b'{"model": "m", "a": "model", "b": "\\u006dodel"}',
    "its own name": b'{"model": "model"}',
    "in a text": b'{"model": "m", "a": ",\\"model\\":\\"n\\"", "b": "\\\\"}',
    "other keys": b'{"model": "m", "models": 1, "Model": 2, "model ": 3, "": 4}',
}


@pytest.mark.parametrize("body", ONCE.values(), ids=ONCE.keys())
def test_what_only_looks_like_a_second_model_passes(body: bytes) -> None:
    name = json.loads(body)["model"]
    assert model_of_json(body) == name
    for size in (1, 2, 3, 7, 20, 64, 1000):
        assert read_all(JsonModelScanner(), body, size) == name


def test_second_models_are_found_in_random_bodies() -> None:
    rng = random.Random(5)
    texts = ["model", "m", "", '"', "\\", '\\"', "{", "]", ",", ":", "x" * 40, "\n", "\u4f60"]

    def value(depth: int) -> str:
        kind = rng.randrange(6 if depth else 3)
        if kind == 3:
            return "[" + ", ".join(value(depth - 1) for _ in range(rng.randrange(4))) + "]"
        if kind > 3:
            return members(depth - 1, rng.randrange(4))
        return json.dumps(rng.choice([rng.choice(texts), 1.5, True, None]))

    def members(depth: int, number: int) -> str:
        space = rng.choice(["", " ", "\n\t"])
        pairs = [f"{key(rng.choice(texts))}{space}:{value(depth)}" for _ in range(number)]
        return "{" + f"{space},{space}".join(pairs) + "}"

    def key(text: str) -> str:
        if text == "model" and rng.random() < 0.3:
            return '"mod\\u0065l"'
        return json.dumps(text, ensure_ascii=rng.random() < 0.5)

    seen = set()
    for _ in range(1500):
        body = ('{"model": "m",' + members(3, rng.randrange(1, 6))[1:]).encode()
        pairs = json.loads(body, object_pairs_hook=list)
        repeats = sum(name == "model" for name, _ in pairs) > 1
        seen.add(repeats)
        watch = ModelKey()
        position = 0
        raised = False
        while position < len(body) and not raised:
            size = rng.choice([1, 2, 5, 30, 200])
            try:
                watch.feed(body[position : position + size])
            except RequestError:
                raised = True
            position += size
        assert raised == repeats, body
    assert seen == {True, False}


@pytest.fixture
def undecoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has every body treated as one that is too large to decode."""
    monkeypatch.setattr(scan_module, "MAX_SCANNED_BYTES", 5)
    monkeypatch.setattr(scan_module, "MAX_DECODED_BYTES", -1)


@pytest.mark.usefixtures("undecoded")
def test_the_name_in_a_body_that_is_too_large_to_decode() -> None:
    def find(body: bytes, size: int) -> str:
        return read_all(JsonModelScanner(), body, size)

    name = '"\u043c \\ \U0001f600" model' * 9
    written = b'{"a": [{"model": 1}, "model"], "model" : %b\n}' % json.dumps(name).encode()
    for size in (1, 2, 7, 64, 10_000):
        for body in BODIES.values():
            assert find(body, size) == "m"
        assert find(written, size) == name
        for value in (b'"x', b"1", b"null", b'{"model": "x"}', b'"%b"' % (b"x" * 600), b'""'):
            with pytest.raises(RequestError) as caught:
                find(b'{"a": 1, "model": %b}' % value, size)
            assert caught.value.param == "model"
        for body in (*TWICE.values(), b'{"a": 1, "model": "\xff"}', b'{"a": 1, "b": {"model": 1}}'):
            with pytest.raises(RequestError):
                find(body, size)


@pytest.mark.parametrize("depth", [0, 1, 7])
def test_keys_in_inner_objects_take_little_more_than_other_text(depth: int) -> None:
    """Looked at one by one, they would keep a router from all else for minutes."""

    def spent(inner: bytes) -> float:
        key = ModelKey()
        unit = b"[" * depth + inner + b"]" * depth + b","
        began = time.thread_time()
        key.feed(b'{"a": [' + unit * (2**20 // len(unit)))
        return time.thread_time() - began

    keys = min(spent(b'{"model":1}') for _ in range(3))
    assert keys < 12 * min(spent(b'{"madel":1}') for _ in range(3))


def test_what_only_looks_like_a_key_to_the_fast_search_ends_it() -> None:
    """Else every slice would be read token by token."""
    with pytest.raises(RequestError, match="a stray character"):
        ModelKey().feed(b'{"a": 1, \1, "b": {"model": 2}')


def test_nothing_after_the_model_is_needed() -> None:
    scanner = JsonModelScanner()
    assert scanner.feed(b'{"model": "m", "image": "AAAA') == "m"


def test_a_model_after_much_else_is_found_at_the_end() -> None:
    image = b'{"image": "' + b"A" * 3_000_000 + b'", "a": [{"model": "x"}], "model": "m", "b": 1}'
    assert scan(JsonModelScanner(), image, [65536] * 50) == ("m", len(image))
    with pytest.raises(RequestError, match="not valid JSON"):
        scan(JsonModelScanner(), image[:-1], [65536] * 50)


def test_unicode_model_names_survive() -> None:
    body = json.dumps({"model": "модель-\U0001f600"}).encode()
    assert model_of_json(body) == "модель-\U0001f600"
    assert scan(JsonModelScanner(), body, [1] * len(body))[0] == "модель-\U0001f600"


BAD_JSON = {
    "empty": (b"", "the request body is not valid JSON"),
    "text": (b"hello", "the request body is not valid JSON"),
    "cut": (b'{"messages": [', "the request body is not valid JSON"),
    "cut string": (b'{"messages": "abc', "the request body is not valid JSON"),
    "single quotes": (b"{'model': 'm'}", "the request body is not valid JSON"),
    "array": (b'["model"]', "the request body must be a JSON object (found `array`)"),
    "number": (b"17 ", "the request body must be a JSON object (found `int`)"),
    "string": (b'"model"', "the request body must be a JSON object (found `str`)"),
    "null": (b"null", "the request body must be a JSON object (found `null`)"),
    "no model": (b'{"prompt": "x"}', "the request has no `model`"),
    "nested model only": (b'{"a": {"model": "x"}}', "the request has no `model`"),
    "null model": (b'{"model": null}', "`model` must be a string (found `null`)"),
    "number model": (b'{"model": 7}', "`model` must be a string (found `int`)"),
    "infinite model": (b'{"model": 1e400}', "`model` must be a string (found `float`)"),
    "list model": (b'{"model": ["m"]}', "`model` must be a string (found `array`)"),
    "object model": (b'{"model": {"a": 1}}', "`model` must be a string (found `object`)"),
    "empty model": (b'{"model": ""}', "`model` is empty"),
    "long model": (b'{"model": "' + b"x" * 600 + b'"}', "`model` is longer than 512"),
}


@pytest.mark.parametrize(("body", "message"), BAD_JSON.values(), ids=BAD_JSON.keys())
def test_bad_json_is_refused_alike_in_one_piece_and_in_many(body: bytes, message: str) -> None:
    with pytest.raises(RequestError) as whole:
        model_of_json(body)
    with pytest.raises(RequestError) as pieces:
        scan(JsonModelScanner(), body, [3] * len(body))
    assert whole.value.message.startswith(message)
    assert pieces.value.message.startswith(message)
    assert whole.value.param == pieces.value.param


def form(*parts: tuple[str, bytes], boundary: str = "b0undary") -> bytes:
    """Encodes a multipart form; a part is its disposition's rest and its content."""
    lines = [
        f"--{boundary}\r\nContent-Disposition: form-data; {rest}\r\n\r\n".encode()
        + content
        + b"\r\n"
        for rest, content in parts
    ]
    return b"".join(lines) + f"--{boundary}--\r\n".encode()


FORM_TYPE = b'multipart/form-data; boundary="b0undary"'


def test_form_model_is_found_in_any_pieces_before_or_after_a_file() -> None:
    image = ('name="image"; filename="model.png"', bytes(range(256)) * 40)
    field = ('name="model"', b"m")
    rng = random.Random(1)
    for body in (form(field, image), form(image, field)):
        for _ in range(20):
            sizes = [rng.randint(1, 50) for _ in range(len(body))]
            assert scan(scanner_for(FORM_TYPE), body, sizes)[0] == "m"


def test_a_second_model_in_a_form_is_refused() -> None:
    image = ('name="image"; filename="a"', b"x" * 5000)
    body = form(('name="model"', b"m"), image, ('name="model"', b"n"))
    for size in (10, 100, 100_000):
        with pytest.raises(RequestError, match="`model` is given twice"):
            read_all(scanner_for(FORM_TYPE), body, size)
    once = form(('name="model"', b"m"), image, ('name="model"; filename="model"', b"n"))
    assert read_all(scanner_for(FORM_TYPE), once, 100) == "m"


def test_form_is_read_no_further_than_the_model() -> None:
    body = form(('name="model"', b"m"), ('name="image"; filename="a"', b"x" * 100_000))
    assert scan(scanner_for(FORM_TYPE), body, [64] * 2000)[1] < 256


def test_a_form_of_very_many_parts_is_refused() -> None:
    body = form(*[('name="a"', b"")] * 4097)
    with pytest.raises(RequestError, match="more than 4096 parts"):
        scan(scanner_for(FORM_TYPE), body, [])


def test_a_file_called_model_is_not_the_model() -> None:
    body = form(('name="model"; filename="model"', b"weights"), ('name="model"', b"m"))
    assert scan(scanner_for(FORM_TYPE), body, [])[0] == "m"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"no form at all", "the request body is not a valid multipart form"),
        (form(('name="prompt"', b"x")), "the request has no `model`"),
        (form(('name="model"', b"")), "`model` is empty"),
        (form(('name="model"', b"\xff\xfe")), "`model` is not valid UTF-8"),
        (form(('name="model"', b"x" * 600)), "`model` is longer than 512 bytes"),
    ],
    ids=["text", "missing", "empty", "not utf-8", "long"],
)
def test_bad_forms_are_refused(body: bytes, message: str) -> None:
    with pytest.raises(RequestError) as error:
        scan(FormModelScanner(b"b0undary"), body, [7] * len(body))
    assert error.value.message.startswith(message)


def test_a_form_without_boundary_is_refused() -> None:
    with pytest.raises(RequestError, match="no boundary"):
        scanner_for(b"multipart/form-data")


def test_other_content_types_are_read_as_json() -> None:
    for content_type in (b"", b"text/plain", b"application/json; charset=utf-8"):
        assert isinstance(scanner_for(content_type), JsonModelScanner)
