"""HTTP/1.0: no chunks, the end of the connection is the end of the answer."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.remote_servers import serve_at
from truthgpt_serve.access.credentials import create_key
from truthgpt_serve.cluster.old_clients import OldClientsProtocol

LIMIT_S = 20
PIECES = [b"data: 1\n\n", b"", b"data: 2\n\n"]


async def sample(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        raise NotImplementedError
    path = scope["path"]
    headers = [(b"content-type", b"text/event-stream")]
    if path == "/length":
        headers.append((b"content-length", b"%d" % sum(map(len, PIECES))))
    if path == "/id":
        headers += [line for line in scope["headers"] if line[0] == b"x-request-id"]
    if path == "/chunked":
        headers.append((b"Transfer-Encoding", b"chunked"))
    status = 204 if path == "/empty" else 200
    await send({"type": "http.response.start", "status": status, "headers": headers})
    for piece in [] if path == "/empty" else PIECES:
        await send({"type": "http.response.body", "body": piece, "more_body": True})
        await asyncio.sleep(0)
    if path == "/broken":
        raise ConnectionError
    last = b"data: 3\n\n" if path == "/tail" else b""
    await send({"type": "http.response.body", "body": last})


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with serve_at(sample, http=OldClientsProtocol) as port:
        yield port


def ask(port: int, request: bytes) -> tuple[bytes, bytes]:
    """Returns head and body of an answer that ends with the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S) as client:
        client.sendall(request)
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    return head.lower(), body


@pytest.mark.parametrize("path", [b"/", b"/chunked", b"/length", b"/tail", b"/broken"])
@pytest.mark.parametrize("more", [b"", b"host: x\r\n", b"connection: keep-alive\r\n"])
def test_an_answer_to_http_1_0_has_no_chunks(port: int, path: bytes, more: bytes) -> None:
    head, body = ask(port, b"GET %b HTTP/1.0\r\n%b\r\n" % (path, more))
    assert head.startswith(b"http/1.1 200")
    assert b"transfer-encoding" not in head
    assert b"connection: close" in head
    assert (b"content-length" in head) == (path == b"/length")
    assert body == b"".join(PIECES) + (b"data: 3\n\n" if path == b"/tail" else b"")


@pytest.mark.parametrize("given", [b"one", b"caf\xe9"])
def test_a_key_is_no_request_id(port: int, given: bytes) -> None:
    key = create_key().encode()
    lines = b"X-Request-ID: %b.%b\r\nx-request-id: %b\r\n" % (given, key, given)
    head, _ = ask(port, b"GET /id HTTP/1.0\r\n%b\r\n" % lines)
    ids = [line for line in head.splitlines() if line.startswith(b"x-request-id")]
    if not given.isascii():  # Ray cannot read it
        assert ids == []
        return
    assert ids == [b"x-request-id: %b.***" % given, b"x-request-id: %b" % given]


@pytest.mark.parametrize("request_line", [b"HEAD / HTTP/1.0", b"GET /empty HTTP/1.0"])
def test_answers_without_a_body(port: int, request_line: bytes) -> None:
    head, body = ask(port, request_line + b"\r\n\r\n")
    assert b"transfer-encoding" not in head
    assert body == b""


def test_http_1_1_keeps_its_chunks(port: int) -> None:
    head, body = ask(port, b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    assert b"transfer-encoding: chunked" in head
    assert body == b"9\r\ndata: 1\n\n\r\n9\r\ndata: 2\n\n\r\n0\r\n\r\n"


@pytest.mark.parametrize(
    ("request_line", "message"),
    [
        (b"FOO /v1/models HTTP/1.1", b"FOO is not an HTTP method that this server knows"),
        (b"GETX / HTTP/1.1", b"GETX is not an HTTP method that this server knows"),
        (b"A" * 41 + b" / HTTP/1.1", b"Invalid HTTP request received."),
        (b"F\xff / HTTP/1.1", b"Invalid HTTP request received."),
        (b"GET / HTTP/9.1", b"Invalid HTTP request received."),
    ],
)
def test_an_unknown_method_is_named(port: int, request_line: bytes, message: bytes) -> None:
    head, body = ask(port, request_line + b"\r\nhost: x\r\n\r\n")
    assert head.startswith(b"http/1.1 400")
    assert body == message


@pytest.mark.parametrize("at_once", [True, False])
def test_a_trailer_is_no_header(at_once: bool) -> None:
    seen: list[dict[bytes, bytes]] = []

    async def note(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            raise NotImplementedError
        while (await receive()).get("more_body"):
            pass
        seen.append(dict(scope["headers"]))
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    head = b"POST / HTTP/1.1\r\nhost: x\r\nx-one: 1\r\ntransfer-encoding: chunked\r\n\r\n"
    names = (b"authorization", b"x-api-key", b"x-request-timeout-ms", b"x-request-id", b"x-one")
    trailers = b"".join(b"%b: 2\r\n" % name for name in names)
    body = b"1\r\nx\r\n0\r\n" + trailers + b"\r\n"
    with (
        serve_at(note, http=OldClientsProtocol) as port,
        socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S) as client,
    ):
        for _ in range(2):  # the next request of a connection has headers again
            for part in [head + body] if at_once else [head, body]:
                client.sendall(part)
            assert client.recv(65536).startswith(b"HTTP/1.1 204")
    assert [sorted(headers) for headers in seen] == [[b"host", b"transfer-encoding", b"x-one"]] * 2
    assert [headers[b"x-one"] for headers in seen] == [b"1", b"1"]


def test_what_ray_cannot_read_is_left_out() -> None:
    async def note(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            raise NotImplementedError
        names = b" ".join(sorted(name for name, _ in scope["headers"]))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": names})

    lines = b"X-Request-Id: \xe9\r\nx-session-id: \xc3\xa9\r\nx-other: \xe9\r\nx-one: 1\r\n"
    with serve_at(note, http=OldClientsProtocol) as port:
        _, body = ask(port, b"GET / HTTP/1.0\r\n%bx-request-id: 1\r\n\r\n" % lines)
    assert body == b"x-one x-other x-request-id"


WEBSOCKET = b"connection: upgrade\r\nupgrade: websocket\r\n"
KEY = b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
H2C = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n"


@pytest.mark.parametrize(
    ("method", "lines"),
    [
        (b"POST", WEBSOCKET + b"content-length: 3\r\n\r\nabc"),
        (b"POST", WEBSOCKET + KEY + b"content-length: 3\r\n\r\nabc"),
        (b"POST", WEBSOCKET + KEY + b"content-length: 0\r\n\r\n"),
        (b"POST", WEBSOCKET + b"content-length: 3\r\n\r\n"),
        (b"PUT", WEBSOCKET + b"\r\n"),
        (b"GET", WEBSOCKET + KEY + b"content-length: 3\r\n\r\nabc"),
        (b"POST", WEBSOCKET + b"transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"),
        (b"POST", H2C + b"content-length: 3\r\n\r\nabc"),
        (b"POST", WEBSOCKET + b"content-length: 9000000\r\n\r\n" + bytes(9_000_000)),
    ],
    ids=range(9),
)
@pytest.mark.parametrize(
    ("path", "form"),
    [
        (b"/v1/completions", b'{"error":{"message":"A request with `Upgrade` has no body'),
        (b"/models/m/v1/messages", b'{"type":"error","error":{"type":"invalid_request_error"'),
        (b"/models/m/v2/models/m/infer", b'{"error":"A request with `Upgrade` has no body'),
    ],
)
def test_a_body_behind_an_upgrade_is_refused_at_once(
    port: int, method: bytes, lines: bytes, path: bytes, form: bytes
) -> None:
    began_s = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S) as client:
        sender = threading.Thread(target=send_all, args=(client, lines, method, path))
        sender.start()
        answer = b""
        while not answer.endswith(b"}") and (piece := client.recv(65536)):
            answer += piece
        took_s = time.monotonic() - began_s
    sender.join()
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\n")
    assert body.startswith(form)
    assert took_s < LIMIT_S / 2


def send_all(client: socket.socket, lines: bytes, method: bytes, path: bytes) -> None:
    with contextlib.suppress(OSError):  # the rest is not read
        client.sendall(method + b" " + path + b" HTTP/1.1\r\nhost: x\r\n" + lines)


@pytest.mark.parametrize("lines", [H2C, b"upgrade: websocket\r\n", b"connection: upgrade\r\n"])
def test_other_upgrades_are_passed_over(port: int, lines: bytes) -> None:
    head, body = ask(port, b"GET /length HTTP/1.1\r\nhost: x\r\n%b\r\n" % close(lines))
    assert head.startswith(b"http/1.1 200")
    assert body == b"".join(PIECES)


def close(lines: bytes) -> bytes:
    """Returns header lines by which the server also closes the connection."""
    if b"connection: " not in lines:
        return b"connection: close\r\n" + lines
    return lines.replace(b"connection: ", b"connection: close, ")


def test_a_websocket_reaches_the_application() -> None:
    seen: list[str] = []

    async def note(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            raise NotImplementedError
        seen.append((await receive())["type"])
        await send({"type": "websocket.close"})

    with serve_at(note, http=OldClientsProtocol) as port:
        head, _ = ask(port, b"GET / HTTP/1.1\r\nhost: x\r\n" + WEBSOCKET + KEY + b"\r\n")
    assert head.startswith(b"http/1.1 403")
    assert seen == ["websocket.connect"]


def test_what_was_asked_before_an_upgrade_is_answered(port: int) -> None:
    first = b"GET /length HTTP/1.1\r\nhost: x\r\n\r\n"
    second = b"POST / HTTP/1.1\r\nhost: x\r\n" + WEBSOCKET + b"content-length: 3\r\n\r\nabc"
    head, body = ask(port, first + second)
    assert head.startswith(b"http/1.1 200")
    assert body == b"".join(PIECES)


@pytest.mark.parametrize("reset", [False, True])
def test_a_connection_that_ends_leaves_nothing(port: int, reset: bool) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S) as client:
        client.sendall(b"GET /length HTTP/1.1\r\nhost: x\r\n\r\n")
        answer = b""
        while not answer.endswith(b"data: 3\n\n") and b"data: 2\n\n" not in answer:
            answer += client.recv(65536)
        assert len(live_protocols()) == 1
        if reset:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    deadline = time.monotonic() + LIMIT_S
    while live_protocols():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def live_protocols() -> list[OldClientsProtocol]:
    gc.collect()
    return [one for one in gc.get_objects() if type(one) is OldClientsProtocol]
