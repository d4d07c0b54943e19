"""Adds the end of the process before this one to a model's own card, `GET /v1/models/{id}`."""

from __future__ import annotations

import json
from typing import Any

from truthgpt_serve.http.asgi import Message, Receive, Scope, Send, send_json

KEY = "last_error"
_PATH = "/v1/models/"


class CardWithDeath:
    """An ASGI application whose cards say how the last process of the model died.

    Args:
        app: The application.
        last_death: In one line.
    """

    def __init__(self, app: Any, last_death: str) -> None:
        self._app = app
        self._last_death = last_death

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one ASGI connection."""
        if scope["type"] != "http" or scope["method"] != "GET" or _PATH not in scope["path"]:
            await self._app(scope, receive, send)
            return
        messages: list[Message] = []

        async def keep(message: Message) -> None:
            messages.append(message)

        await self._app(scope, receive, keep)
        card = _read_card(messages)
        if card is not None:
            await send_json(send, {**card, KEY: self._last_death})
            return
        for message in messages:
            await send(message)


def _read_card(messages: list[Message]) -> dict[str, Any] | None:
    if not messages or messages[0].get("status") != 200:
        return None
    try:
        card = json.loads(b"".join(message.get("body", b"") for message in messages[1:]))
    except ValueError:
        return None
    return card if isinstance(card, dict) else None
