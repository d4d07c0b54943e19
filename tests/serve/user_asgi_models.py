"""A class whose ASGI application answers, and fails, in every way that its requests name."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from truthgpt_serve import register_model

STREAM = [(b"content-type", b"text/event-stream")]
JSON = [(b"content-type", b"application/json")]
OWN_HEADERS = [
    (b"Date", b"Mon, 01 Jan 2001 00:00:00 GMT"),
    (b"Server", b"own"),
    (b"X-Request-Id", b"own"),
    (b"X-Kept", b"kept"),
    (b"Keep-Alive", b"timeout=7"),
]
ERRORS: dict[str, tuple[int, list[tuple[bytes, bytes]], bytes]] = {
    "detail": (422, JSON, b'{"detail":"the image is too dark"}'),
    "number for a code": (400, JSON, b'{"error":{"message":"no","type":"BadRequest","code":400}}'),
    "text": (503, [(b"content-type", b"text/plain")], b"warming up"),
    "page": (502, [(b"content-type", b"text/html")], b"<h1>Bad Gateway</h1>"),
    "full": (429, JSON, b'{"error":"too many"}'),
    "not allowed": (405, JSON, b'{"detail":"Method Not Allowed"}'),
    "not found": (404, JSON, b'{"detail":"Not Found"}'),
    "not implemented": (501, JSON, b'{"detail":"no beams"}'),
}


@register_model("own-application")
class OwnApplication:
    """Its application looks at `prompt` alone."""

    def load(self, cfg: dict[str, Any]) -> None:
        """Needs nothing."""

    def infer(self, inputs: dict[str, Any]) -> Any:
        """Does nothing."""

    def create_asgi_app(self) -> Any:
        """Returns the application."""
        return serve


async def serve(scope: Any, receive: Any, send: Any) -> None:
    """Answers one connection."""
    if scope["type"] != "http":
        return
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body += message.get("body", b"")
        more = message.get("more_body", False)
    what = json.loads(body)["prompt"] if body else "not found"
    if what in ERRORS:
        await answer(send, *ERRORS[what])
    elif what == "headers":
        await answer(send, 200, [*JSON, *OWN_HEADERS], b"{}")
    elif what == "raises":
        raise RuntimeError("a secret reason")
    elif what == "hangs":
        await asyncio.sleep(600)
    elif what == "returns":
        return
    else:
        await stream(send, what)


async def answer(send: Any, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    """Sends a whole answer."""
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def stream(send: Any, what: str) -> None:
    """Sends events, and ends in the way that was asked for."""
    kind = JSON if what == "half a body" else STREAM
    await send({"type": "http.response.start", "status": 200, "headers": kind})
    for piece in (b'data: {"text":"a"}\n\n', b'data: {"text":"b"}\n\n'):
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    if what == "half an event":
        await send({"type": "http.response.body", "body": b'data: {"te', "more_body": True})
    if what == "stream hangs":
        await asyncio.sleep(600)
    if what != "stream returns":
        raise RuntimeError("a secret reason")
