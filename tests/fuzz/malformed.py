"""Bytes that are hardly HTTP, or none: heads, lengths and bodies that no client library sends."""

from __future__ import annotations

import json
import random
from collections.abc import Callable

from tests.fuzz.requests import Request

PATHS = ("/v1/completions", "/v1/chat/completions", "/v1/infer", "/v1/images/generations")
_Maker = Callable[[random.Random, bytes, bytes], bytes]


def malformed(rng: random.Random, model: str) -> Request:
    """Returns a request of raw bytes; a closed connection is an answer to it."""
    make = rng.choice(_MAKERS)
    path = rng.choice(PATHS)
    if rng.random() < 0.3:
        path = f"/models/{model}{path}"
    body = json.dumps({"model": model, "prompt": "a", "max_tokens": 2}).encode()
    kind = make.__name__.strip("_")
    raw = make(rng, path.encode(), body)
    return Request(
        f"raw {kind}", "RAW", path, mutations=[kind], broken=True, raw=raw, ends=rng.random() < 0.5
    )


def _head(path: bytes, *lines: bytes, method: bytes = b"POST", version: bytes = b"1.1") -> bytes:
    start = b"%b %b HTTP/%b" % (method, path, version)
    return b"\r\n".join([start, b"host: fuzz", b"connection: close", *lines, b"", b""])


def _sized(path: bytes, body: bytes, *lines: bytes) -> bytes:
    lines = (*lines, b"content-type: application/json", b"content-length: %d" % len(body))
    return _head(path, *lines) + body


def _no_http(rng: random.Random, path: bytes, body: bytes) -> bytes:
    return rng.choice(
        [
            bytes(rng.randrange(256) for _ in range(200)) + b"\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 500,
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"\0" * 5000 + b"\n\n",
            b"*1\r\n$4\r\nPING\r\n\r\n",
            b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n" + _sized(path, body),
            b"\xff\xfe" + _sized(path, body),
        ]
    )


def _version(rng: random.Random, path: bytes, body: bytes) -> bytes:
    version = rng.choice([b"0.9", b"1.0", b"2.0", b"3.7", b"1.1.1", b"x", b"", b"9" * 300])
    return _head(path, b"content-length: %d" % len(body), version=version) + body


def _target(rng: random.Random, path: bytes, body: bytes) -> bytes:
    target = rng.choice(
        [
            b"http://other.example" + path,
            b"//" + path,
            b"/" + b"%00" * 50,
            b"/\xff\xfe\x80",
            b"/" + b"a/" * 20_000,
            path + b"?" + b"q=1&" * 5000,
            b"user:secret@fuzz:1",
            b"/v1/../../../etc/passwd",
            b"/models/%2e%2e/v1/models",
            b"/a b",
            b"",
            b"/v1/models/" + b"%F0%9F%91%A9" * 100,
        ]
    )
    method = rng.choice([b"GET", b"POST", b"CONNECT", b"OPTIONS", b"G\0T", b"get", b"X" * 5000])
    return _head(target, b"content-length: 0", method=method)


def _header(rng: random.Random, path: bytes, body: bytes) -> bytes:
    line = rng.choice(
        [
            b"no colon",
            b" : empty",
            b"x-a : space",
            b"x-a:\x00",
            b"x-\xc3\xa9: a",
            b"x-a: b\rc: d",
            b"x-a: b\r\n folded",
            b"host: second",
            b"host:",
            b"x-a: " + b"\x01\x02\x7f",
            b"content-type: application/json\r\ncontent-type: text/plain",
            b"expect: 100-continue",
            b"cookie: " + b"=" * 4000,
            b"x-request-id: \xff" + b"y" * 3000,
            b"te: trailers, deflate",
            b"traceparent: 00-" + b"z" * 32 + b"-1-1",
            b"x-request-timeout-ms: -1",
            b"x-request-timeout-ms: 1e999",
            b"x-truthgpt-way: " + b"router" * 50,
            b"accept-encoding: " + b"gzip;q=9," * 500,
            b"range: bytes=99999999999999999999-",
            b"connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAA",
            b"connection: content-length, authorization",
        ]
    )
    return _sized(path, body, line)


def _huge_head(rng: random.Random, path: bytes, body: bytes) -> bytes:
    line = rng.choice(
        [
            b"x-long: " + b"v" * rng.choice([16_000, 70_000, 1 << 20]),
            b"\r\n".join(b"x-%d: v" % at for at in range(rng.choice([150, 3000]))),
            b"x" * 70_000 + b": v",
            b"authorization: Bearer " + b"k" * 100_000,
        ]
    )
    return _sized(path, body, line)


def _length(rng: random.Random, path: bytes, body: bytes) -> bytes:
    line = rng.choice(
        [
            b"content-length: %d\r\ncontent-length: 3" % len(body),
            b"content-length: %d\r\ntransfer-encoding: chunked" % len(body),
            b"content-length: +%d" % len(body),
            b"content-length: 0x10",
            b"content-length: ",
            b"content-length: %d " % len(body) + b"\t",
            b"content-length: 18446744073709551616",
            b"transfer-encoding: chunked, chunked",
            b"transfer-encoding: \x0bchunked",
            b"transfer-encoding: identity",
        ]
    )
    return _head(path, b"content-type: application/json", line) + body


def _chunks(rng: random.Random, path: bytes, body: bytes) -> bytes:
    size = b"%x" % len(body)
    data = rng.choice(
        [
            size + b"\r\n" + body + b"\r\n0\r\n\r\n",
            b"ffffffffffffffff\r\n" + body,
            b"-1\r\n" + body,
            b"zz\r\n" + body,
            size + b";ext=" + b"e" * 20_000 + b"\r\n" + body + b"\r\n0\r\n\r\n",
            size + b"\r\n" + body + b"0\r\n\r\n",
            b"1\r\n" + b"\r\n1\r\n".join(bytes([byte]) for byte in body) + b"\r\n0\r\n\r\n",
            size + b"\r\n" + body + b"\r\n0\r\nx-trailer: " + b"t" * 20_000 + b"\r\n\r\n",
            b"0\r\n\r\n",
        ]
    )
    return _head(path, b"content-type: application/json", b"transfer-encoding: chunked") + data


def _two_requests(rng: random.Random, path: bytes, body: bytes) -> bytes:
    second = rng.choice([b"GARBAGE\r\n\r\n", _head(b"/-/routes", method=b"GET"), b"\0" * 100])
    first = _sized(path, body).replace(b"connection: close", b"connection: keep-alive")
    return rng.choice([first + second, _sized(path, body) + body])


def _line_ends(rng: random.Random, path: bytes, body: bytes) -> bytes:
    raw = _sized(path, body)
    return rng.choice([raw.replace(b"\r\n", b"\n"), raw.replace(b"\r\n", b"\r"), b"\r\n" * 9 + raw])


def _large_json(rng: random.Random, path: bytes, body: bytes) -> bytes:
    depth = rng.choice([600, 20_000, 400_000])
    value = rng.choice(
        [
            b"[" * depth + b"]" * depth,
            b'{"a":' * depth + b"0" + b"}" * depth,
            b"[" * depth,
            b"9" * depth,
            b"-" * depth,
            b'"' + b"\\u0000" * depth + b'"',
            b'"' + b"\\ud800" * depth + b'"',
            b"[" + b"{}," * depth + b"{}]",
            b"{" + b",".join(b'"k%d":%d' % (at, at) for at in range(20_000)) + b"}",
        ]
    )
    name = rng.choice([b"model", b"prompt", b"messages", b"inputs", b"padding", b"stop", b"tools"])
    parts = [body[1:-1], b'"%b": %b' % (name, value)]
    rng.shuffle(parts)
    return _sized(path, b"{" + b", ".join(parts) + b"}")


def _charset(rng: random.Random, path: bytes, body: bytes) -> bytes:
    name = rng.choice(["utf-16", "utf-32", "utf-7", "cp037", "latin-1"])
    return _sized(path, (body.decode()[:-1] + ', "user": "é"}').encode(name, "replace"))


_MAKERS: tuple[_Maker, ...] = (
    _no_http, _version, _target, _header, _header, _huge_head, _length, _chunks, _two_requests,
    _line_ends, _large_json, _large_json, _charset,
)  # fmt: skip
