"""A remote server that compresses its answers, without being asked: clients get them plain."""

from __future__ import annotations

import asyncio
import gzip
import json
import threading
import zlib
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from backports import zstd

from tests.support.remote_servers import OtherServer, Request, chat_event, relayed, send_start
from truthgpt_serve.http.asgi import Send, send_bytes
from truthgpt_serve.http.codings.decoder import PIECE_BYTES

PACK: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "zstd": zstd.compress,
}
CHAT = {"model": "far", "messages": [{"role": "user", "content": "x"}]}


def answering(other: OtherServer, body: bytes, coding: str, kind: bytes, status: int = 200) -> None:
    async def behave(request: Request, send: Send) -> None:
        headers = [(b"content-encoding", coding.encode())]
        await send_bytes(send, body, kind, status=status, headers=headers)

    other.behave = behave


@pytest.mark.parametrize("coding", PACK)
@pytest.mark.parametrize("size", [10, 3 * PIECE_BYTES])
def test_a_whole_answer(coding: str, size: int) -> None:
    value = {"model": "there", "text": "a" * size}
    with relayed(model="there") as (client, other):
        answering(other, PACK[coding](json.dumps(value).encode()), coding, b"application/json")
        asked = {"accept-encoding": "gzip, zstd"}
        answer = client.post("/v1/chat/completions", json=CHAT, headers=asked)
        assert other.last.header("accept-encoding") == ["identity"]
    assert answer.json() == {**value, "model": "far"}
    assert "content-encoding" not in answer.headers
    length = answer.headers.get("content-length")
    assert length == str(len(answer.content)) or (length is None and size > 10)


@pytest.mark.parametrize("coding", PACK)
def test_bytes_of_other_types(coding: str) -> None:
    body = bytes(range(256)) * 4000
    with relayed() as (client, other):
        answering(other, PACK[coding](body), coding, b"audio/wav")
        answer = client.post("/v1/audio/speech", json={"model": "far", "input": "x"})
    assert answer.content == body
    assert "content-encoding" not in answer.headers


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_an_event_stream_comes_as_it_is_made(coding: str) -> None:
    async def behave(request: Request, send: Send) -> None:
        bits = 31 if coding == "gzip" else 15
        packer = zlib.compressobj(wbits=bits)
        await send_start(send, "text/event-stream", content_encoding=coding)
        for word in ("one ", "two", None):
            event = b"data: [DONE]\n\n" if word is None else chat_event("there", word)
            data = packer.compress(event) + packer.flush(zlib.Z_SYNC_FLUSH)
            await send({"type": "http.response.body", "body": data, "more_body": True})
            if word == "one ":  # the client must have it before there is more
                first.append(await wait_for_client())
        await send({"type": "http.response.body", "body": packer.flush()})

    first: list[bool] = []
    seen = threading.Event()

    async def wait_for_client() -> bool:
        return await asyncio.to_thread(seen.wait, 20)

    with relayed(model="there") as (client, other):
        other.behave = behave
        body = {**CHAT, "stream": True}
        with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            lines = []
            for line in answer.iter_lines():
                lines.append(line)
                seen.set()
    assert first == [True]
    events = [line.removeprefix("data: ") for line in lines if line]
    assert events[-1] == "[DONE]"
    assert {json.loads(event)["model"] for event in events[:-1]} == {"far"}


def test_errors_and_the_generic_route() -> None:
    with relayed(model="there") as (client, other):
        error = {"error": {"message": "no", "type": "x_error", "param": None, "code": None}}
        body = json.dumps(error).encode()
        answering(other, gzip.compress(body), "gzip", b"application/json", 422)
        answer = client.post("/v1/chat/completions", json=CHAT)
        assert (answer.status_code, answer.json()) == (422, error)
        text = {"choices": [{"message": {"content": "hello"}, "finish_reason": "stop"}]}
        answering(other, gzip.compress(json.dumps(text).encode()), "gzip", b"application/json")
        body_of: dict[str, Any] = {"model": "far", "inputs": {"text": "x"}}
        generic = client.post("/v1/infer", json=body_of)
        assert generic.json()["outputs"]["text"] == "hello"


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("br", b"{}"),
        ("gzip, gzip", b"{}"),
        ("gzip", b"{}"),
        ("gzip", gzip.compress(b"{}", mtime=0)[:-3]),
        ("gzip", gzip.compress(b"{}", mtime=0) + b"{}"),
        ("zstd", zstd.compress(b"{}")[:-1]),
    ],
)
def test_what_cannot_be_read_is_the_remote_servers_fault(coding: str, body: bytes) -> None:
    with relayed() as (client, other):
        answering(other, body, coding, b"application/json")
        try:
            answer = client.post("/v1/chat/completions", json=CHAT)
        except httpx.RemoteProtocolError:
            return  # its beginning was sound, and the client learns that the rest is not
        assert answer.status_code == 502
        assert "remote server" in answer.json()["error"]["message"]


def test_an_answer_without_a_body() -> None:
    with relayed() as (client, other):
        answering(other, b"", "gzip", b"application/json")
        answer = client.head("/v1/anything")
        assert (answer.status_code, answer.content) == (200, b"")
        answering(other, b"", "gzip", b"application/json", 204)
        assert client.post("/v1/chat/completions", json=CHAT).status_code == 204


def test_a_long_answer_passes_in_pieces() -> None:
    size = 64 * 2**20
    with relayed() as (client, other):
        answering(other, gzip.compress(bytes(size), 1), "gzip", b"application/octet-stream")
        body = {"model": "far", "input": "x"}
        with client.stream("POST", "/v1/audio/speech", json=body) as answer:
            sizes = [len(piece) for piece in answer.iter_raw()]
    assert sum(sizes) == size
    assert max(sizes) <= 4 * PIECE_BYTES
