"""Changes that make a request bad: in its fields, its bytes, its head, its target."""

from __future__ import annotations

import gzip
import random
from collections.abc import Callable
from typing import Any

from tests.fuzz.requests import Request
from tests.fuzz.values import encode, odd_value, places, raw, remove, replace


def mutate(rng: random.Random, request: Request) -> None:
    """Changes a request once to three times, mostly in its fields."""
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        fields = isinstance(request.body, dict)
        if fields and rng.random() < 0.75:
            change = rng.choice(_FIELD_CHANGES)
        elif request.body is not None and rng.random() < 0.6:
            change = rng.choice(_BYTE_CHANGES)
        else:
            change = rng.choice(_HEAD_CHANGES)
        change(rng, request)
        request.mutations.append(change.__name__.strip("_"))


def body_of(request: Request) -> bytes | None:
    """Returns the bytes of a request's body."""
    if request.body is None or isinstance(request.body, bytes):
        return request.body
    return encode(request.body)


# -- fields


def _replace_value(rng: random.Random, request: Request) -> None:
    found = places(request.body)
    if found:
        replace(request.body, rng.choice(found), odd_value(rng))


def _replace_field(rng: random.Random, request: Request) -> None:
    names = [name for name in request.body if name != "model"]
    if names:
        request.body[rng.choice(names)] = odd_value(rng)


def _remove_value(rng: random.Random, request: Request) -> None:
    found = places(request.body)
    if found:
        remove(request.body, rng.choice(found))


def _add_field(rng: random.Random, request: Request) -> None:
    request.body[rng.choice(["unknown", "", "model ", "Model", "prompt", "messages", "n"])] = (
        odd_value(rng)
    )


def _rename_model(rng: random.Random, request: Request) -> None:
    request.body["model"] = rng.choice(
        [
            "nosuch",
            "",
            "STORY",
            "story ",
            "../story",
            "story/x",
            "a" * 5000,
            "\x00",
            7,
            None,
            raw("lone_surrogate"),
            ["story"],
            "ui",
            "router",
        ]
    )


def _repeat_key(rng: random.Random, request: Request) -> None:
    name = rng.choice(list(request.body) or ["model"])
    again = encode({name: odd_value(rng)})[1:-1]
    request.body = b"{" + again + b"," + encode(request.body)[1:]


def _pad(rng: random.Random, request: Request) -> None:
    """Makes a body too long to come in one piece, with the other fields in front or behind."""
    padding = {"padding": rng.choice(["x", "\\", "9"]) * rng.choice([20_000, 70_000, 400_000])}
    in_front = rng.random() < 0.5
    request.body = {**padding, **request.body} if in_front else {**request.body, **padding}


_FIELD_CHANGES: list[Callable[[random.Random, Request], None]] = [
    *[_replace_value] * 6, *[_replace_field] * 6, *[_remove_value] * 2, _add_field,
    _rename_model, _repeat_key, _pad,
]  # fmt: skip


# -- bytes of the body


def _cut(rng: random.Random, request: Request) -> None:
    body = body_of(request) or b""
    request.body = body[: rng.randrange(len(body) + 1)]


def _flip(rng: random.Random, request: Request) -> None:
    body = bytearray(body_of(request) or b"x")
    for _ in range(rng.choice([1, 2, 20])):
        if body:
            body[rng.randrange(len(body))] = rng.randrange(256)
    request.body = bytes(body)


def _append(rng: random.Random, request: Request) -> None:
    more: list[bytes] = [b"x", b"\0", b"{}", b"]", b" " * 100_000, b"\xef\xbb\xbf"]
    request.body = (body_of(request) or b"") + rng.choice(more)


def _other_encoding(rng: random.Random, request: Request) -> None:
    body = body_of(request) or b""
    text = body.decode("utf-8", "replace")
    request.body = rng.choice(
        [text.encode("utf-16", "replace"), b"\xef\xbb\xbf" + body, text.encode("utf-7")]
    )


def _compressed(rng: random.Random, request: Request) -> None:
    body = body_of(request) or b""
    request.body = rng.choice([gzip.compress(body), gzip.compress(b"\0" * 5_000_000), body])
    encoding: list[bytes] = [b"gzip", b"deflate", b"br", b"zstd", b"x", b"gzip, gzip"]
    request.headers.append((b"content-encoding", rng.choice(encoding)))


def _another_body(rng: random.Random, request: Request) -> None:
    others: list[Any] = [b"", b"null", b"[]", b"1", b'"x"', b"{", b"{}", b"a=1&b=2", b"\0" * 100]
    request.body = rng.choice(others)


_BYTE_CHANGES: list[Callable[[random.Random, Request], None]] = [
    _cut, _flip, _append, _other_encoding, _compressed, _another_body,
]  # fmt: skip


# -- head


def _other_method(rng: random.Random, request: Request) -> None:
    request.method = rng.choice(
        ["GET", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE", "post", "FOO"]
    )


def _other_type(rng: random.Random, request: Request) -> None:
    request.content_type = rng.choice(
        [
            None,
            "text/plain",
            "application/xml",
            "multipart/form-data",
            "a",
            "application/json; x",
            "multipart/form-data; boundary=" + "b" * 300,
            "application/json; charset=utf-16",
            "",
        ]
    )


def _other_target(rng: random.Random, request: Request) -> None:
    path = request.path
    request.path = rng.choice(
        [
            path + "/",
            "/" + path,
            path.replace("/", "//", 2),
            path + "?a=b&a=%00",
            path + "/../x",
            path.replace("v1", "v%31"),
            path.upper(),
            path + "%2f",
            path + "%zz",
            "/" + "a" * 9000,
            path + ";x=1",
            "/models/" + path,
            path + "#x",
            "/models",
            "/v1",
            "/v3/x",
            "*",
        ]
    )
    request.broken = request.broken or request.path == "*"


def _odd_header(rng: random.Random, request: Request) -> None:
    odd: list[tuple[bytes, bytes]] = [
        (b"authorization", b"Bearer " + b"x" * 5000), (b"x-request-id", b"\x7f" * 200),
        (b"accept", b"text/html"), (b"accept-encoding", b"gzip"), (b"range", b"bytes=0-1"),
        (b"expect", b"something"), (b"x-forwarded-host", b"evil.example/\"><x>"),
        (b"x-http-method-override", b"DELETE"), (b"cookie", b"a=b; " * 500),
        (b"x-truthgpt-unreached", b"1"), (b"connection", b"close, x-request-id"),
        (b"accept-language", b"\xff\xfe"), (b"x-request-disconnect-disabled", b"?1"),
        (b"serve_multiplexed_model_id", b"x" * 500), (b"if-none-match", b"*"),
    ]  # fmt: skip
    request.headers.append(rng.choice(odd))


def _many_headers(rng: random.Random, request: Request) -> None:
    number = rng.choice([20, 90, 200])
    request.headers += [(b"x-h%d" % at, b"v" * 50) for at in range(number)]


def _broken_head(rng: random.Random, request: Request) -> None:
    odd: list[tuple[bytes, bytes]] = [
        (b"content-length", b"abc"), (b"content-length", b"-5"), (b"content-length", b"7, 8"),
        (b"transfer-encoding", b"gzip"), (b"transfer-encoding", b"chunked, identity"),
        (b"bad name", b"x"), (b"host", b"second"), (b"x", b"a\x00b"), (b"", b"x"),
        (b"content-length", b"99999999999999999999"), (b"upgrade", b"websocket"),
    ]  # fmt: skip
    request.headers.append(rng.choice(odd))
    request.broken = True


_HEAD_CHANGES: list[Callable[[random.Random, Request], None]] = [
    _other_method, _other_method, _other_type, _other_target, _other_target, _odd_header,
    _many_headers, _broken_head,
]  # fmt: skip
