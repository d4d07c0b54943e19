"""A small OpenAI-compatible server for tests of `truthgpt bench`: a model's name says how it errs.

`words` answers; `no-usage` counts nothing; `busy` is full; `broken` ends in the middle of a stream;
`erring` sends an error event; `silent` never ends; `picky` refuses chats; `flaky` fails after one.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from typing import Any

from tests.support.servers import serve_asgi

KEY = "sk-very-secret"
MODELS = ("picky", "words")


class BenchServer:
    """The ASGI application.

    Args:
        models: The names that `/v1/models` lists.
        delay_s: The time between two chunks.

    Attributes:
        bodies: The requests' bodies, in the order in which they came.
        keys: The `authorization` headers of them.
        most_at_once: The most requests that were answered at the same time.
    """

    def __init__(self, models: Iterable[str] = MODELS, delay_s: float = 0.0) -> None:
        self.models = tuple(models)
        self.delay_s = delay_s
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.most_at_once = self._at_once = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/v1/models":
            found = [{"id": name, "object": "model"} for name in self.models]
            await _json(send, {"object": "list", "data": found})
            return
        body = await _read(receive)
        if scope["path"] == "/tokenize":
            tokens = [len(word) for word in body["prompt"].split() for _ in range(2)]
            await _json(send, {"tokens": tokens, "count": len(tokens)})
            return
        headers = dict(scope["headers"])
        self.bodies.append(body)
        self.keys.append(headers.get(b"authorization", b"").decode())
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            await self._answer(scope["path"], body, send)
        finally:
            self._at_once -= 1

    async def _answer(self, path: str, body: dict[str, Any], send: Any) -> None:
        model = body["model"]
        chat = path == "/v1/chat/completions"
        flaky = model == "flaky" and len(self.bodies) > 1
        if model == "busy" or flaky or (model == "picky" and chat):
            status = 400 if model == "picky" else 429
            await _json(send, {"error": {"message": f"no, not with {KEY}"}}, status)
        elif path == "/v1/embeddings":
            usage = {"prompt_tokens": 7, "total_tokens": 7}
            await _json(send, {"data": [{"embedding": [0.5]}], "usage": usage})
        elif path == "/v1/images/generations":
            await _json(send, {"created": 1, "data": [{"b64_json": "aGk="}]})
        else:
            await self._stream(path, body, send)

    async def _stream(self, path: str, body: dict[str, Any], send: Any) -> None:
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        model = body["model"]
        num = body.get("max_completion_tokens") or body.get("max_tokens") or 3
        chat = path == "/v1/chat/completions"
        for at in range(num):
            if at == 1 and model == "silent":
                await asyncio.sleep(30)
            if at == 1 and model == "broken":
                await send({"type": "http.response.body", "body": b""})
                return
            if at == 1 and model == "erring":
                await _event(send, {"error": {"message": "the engine died"}})
                break
            await _event(send, chunk("w ", "length" if at == num - 1 else None, chat=chat))
            await asyncio.sleep(self.delay_s)
        if model != "no-usage":
            await _event(send, usage_event(5, num))
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})


def chunk(text: str, reason: str | None = None, *, chat: bool = True) -> dict[str, Any]:
    """Returns a chunk of a stream."""
    said: dict[str, Any] = {"delta": {"content": text}} if chat else {"text": text}
    return {"id": "x", "choices": [{"index": 0, "finish_reason": reason} | said]}


def usage_event(prompt_tokens: int, completion_tokens: int) -> dict[str, Any]:
    """Returns the event with the counts."""
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    return {"id": "x", "choices": [], "usage": usage}


def event_bytes(value: dict[str, Any]) -> bytes:
    """Returns a server-sent event."""
    return b"data: " + json.dumps(value).encode() + b"\n\n"


async def _event(send: Any, value: dict[str, Any]) -> None:
    await send({"type": "http.response.body", "body": event_bytes(value), "more_body": True})


async def _json(send: Any, value: Any, status: int = 200) -> None:
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(value).encode()})


async def _read(receive: Any) -> dict[str, Any]:
    data, more = b"", True
    while more:
        message = await receive()
        data += message.get("body", b"")
        more = message.get("more_body", False)
    value = json.loads(data or b"{}")
    assert isinstance(value, dict)
    return value


__all__ = ["KEY", "BenchServer", "chunk", "event_bytes", "serve_asgi", "usage_event"]
