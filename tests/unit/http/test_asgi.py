"""The whole answers that every application sends, and where their types and senders are defined."""

from __future__ import annotations

import asyncio
import json
import math
import random
import re
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any

import pytest

from truthgpt_serve.config import load_model_config
from truthgpt_serve.contract import FamilySpec
from truthgpt_serve.errors import MethodError, TruthGPTError, UnavailableError
from truthgpt_serve.http.asgi import (
    REPLAYED_BYTES,
    UNREAD_TIMEOUT_S,
    Replay,
    WholeBody,
    body_of,
    send_error,
)
from truthgpt_serve.server import Application, ModelInstance

PACKAGE = Path(__file__).resolve().parents[3] / "truthgpt_serve"
Message = MutableMapping[str, Any]


class Client:
    """Takes what is sent; with `reads` false nothing behind the first message."""

    def __init__(self, *, reads: bool = True) -> None:
        self.messages: list[Message] = []
        self._reads = reads

    async def send(self, message: Message) -> None:
        if self.messages and not self._reads:
            await asyncio.Event().wait()
        self.messages.append(message)


async def answer_of(error: TruthGPTError, **options: Any) -> tuple[int, dict[bytes, bytes], Any]:
    client = Client()
    await send_error(client.send, error, **options)
    start, body = client.messages
    assert (start["type"], body["type"]) == ("http.response.start", "http.response.body")
    headers = dict(start["headers"])
    assert len(headers) == len(start["headers"])
    assert headers[b"content-length"] == b"%d" % len(body["body"])
    return start["status"], headers, json.loads(body["body"])


async def test_an_error_brings_its_headers() -> None:
    status, headers, body = await answer_of(MethodError("no", allow=("GET", "HEAD")))
    assert (status, headers[b"allow"]) == (405, b"GET, HEAD")
    assert headers[b"content-type"] == b"application/json"
    assert body["error"]["code"] == "method_not_allowed"
    status, headers, _ = await answer_of(UnavailableError("wait", retry_after_s=7))
    assert (status, headers[b"retry-after"]) == (503, b"7")
    assert b"allow" not in headers


async def test_a_given_header_wins_over_the_errors_own() -> None:
    given = [(b"retry-after", b"1"), (b"x-request-id", b"a")]
    error = UnavailableError("wait", retry_after_s=7)
    _, headers, _ = await answer_of(error, headers=given)
    assert (headers[b"retry-after"], headers[b"x-request-id"]) == (b"1", b"a")


@pytest.mark.parametrize(
    ("given", "sent"),
    [(1.5, b"2"), (-5, b"0"), (10**400, b"2147483647"), (math.inf, b"2147483647")]
    + [(value, b"5") for value in ("soon", math.nan, True, [1])],
)
async def test_any_value_of_a_users_class_becomes_whole_seconds(given: Any, sent: bytes) -> None:
    status, headers, _ = await answer_of(UnavailableError("wait", retry_after_s=given))
    assert (status, headers[b"retry-after"]) == (503, sent)


def test_the_types_are_defined_once() -> None:
    # `Message` is a word of chats, too.
    pattern = re.compile(r"^(?:Scope|Receive|Send) = |def send_(?:error|json)\b", re.M)
    places = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if pattern.search(path.read_text(encoding="utf-8"))
    }
    assert places == {"http/asgi.py"}


class Endless:
    def load(self, cfg: dict[str, Any]) -> None:
        pass

    def infer(self, inputs: dict[str, Any]) -> Any:
        return inputs

    def stream(self, inputs: dict[str, Any]) -> Iterator[Any]:
        while True:
            yield "piece"


@pytest.mark.long("waits for limits of time")
async def test_a_client_that_never_reads_its_stream_does_not_keep_the_request() -> None:
    spec = FamilySpec(name="m", class_path="tests:Endless", model_class=Endless)
    instance = ModelInstance(
        spec, load_model_config({"task": "custom", "serving": {"max_request_s": 1}}), name="m"
    )
    await instance.start()
    body = json.dumps({"model": "m", "inputs": {}, "stream": True}).encode()
    requests: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if not requests:
            await asyncio.Event().wait()
        return requests.pop()

    scope = {"type": "http", "method": "POST", "path": "/v1/infer", "headers": []}
    client = Client(reads=False)
    try:
        async with asyncio.timeout(1 + UNREAD_TIMEOUT_S + 2):
            await Application(instance)(scope, receive, client.send)
    finally:
        await instance.close()
    assert [message["type"] for message in client.messages] == ["http.response.start"]


async def test_a_body_comes_as_from_a_connection_and_lets_others_run() -> None:
    body = random.Random(2).randbytes(12 * REPLAYED_BYTES + 1)
    pieces = [
        body[:REPLAYED_BYTES],
        body[REPLAYED_BYTES : REPLAYED_BYTES + 5],
        body[REPLAYED_BYTES + 5 :],
    ]
    released = []
    turns = 0

    async def after() -> Message:
        return {"type": "http.disconnect"}

    async def turn() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    other = asyncio.create_task(turn())
    receive = Replay(pieces, after, lambda: released.append(True))
    found = []
    more = True
    while more:
        message = await receive()
        found.append(message["body"])
        more = message["more_body"]
    assert b"".join(found) == body
    assert max(map(len, found)) == REPLAYED_BYTES
    assert turns >= len(found) - 2
    assert not released
    assert await receive() == {"type": "http.disconnect"}
    assert released
    other.cancel()
    empty = Replay([], after)
    assert await empty() == {"type": "http.request", "body": b"", "more_body": False}
    assert await empty() == {"type": "http.disconnect"}


async def test_a_body_that_was_read_is_given_once_more() -> None:
    async def after() -> Message:
        return {"type": "http.disconnect"}

    receive = WholeBody(b"body", after)
    assert body_of(receive) == b"body"
    assert await receive() == {"type": "http.request", "body": b"body", "more_body": False}
    assert body_of(receive) is body_of(after) is None  # it is not kept
    assert await receive() == {"type": "http.disconnect"}
