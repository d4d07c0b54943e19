"""Answers Anthropic's clients in Anthropic's form on routes that both APIs have: models and errors.

Such a client says so by the header `anthropic-version`. The forms are those of
https://docs.anthropic.com/en/api/models-list and https://docs.anthropic.com/en/api/errors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from truthgpt_serve.http.asgi import Message, Receive, Scope, Send, header, relative_path
from truthgpt_serve.http.envelope import MESSAGES, error_body, is_anthropic
from truthgpt_serve.http.foreign_errors import MAX_ERROR_BYTES, read_passed_error
from truthgpt_serve.http.headers import lower_case
from truthgpt_serve.http.json_body import encode_json
from truthgpt_serve.http.open_inference import is_open_inference

VERSION_HEADER = b"anthropic-version"
MODELS = "/v1/models"
MAX_LIST_BYTES = 8 * 1024 * 1024
"""A longer answer of the models' routes passes as it is."""


class AnthropicAnswers:
    """An application whose models and errors have Anthropic's form where the client is Anthropic's.

    Args:
        app: The application, whose own form of both is OpenAI's.
    """

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one ASGI connection."""
        if scope["type"] == "http" and header(scope["headers"], VERSION_HEADER) is not None:
            path = relative_path(scope)
            if not is_anthropic(path) and not is_open_inference(path):
                send = _Answer(send, _is_models(path)).send
        await self._app(scope, receive, send)


def _is_models(path: str) -> bool:
    return path == MODELS or path.startswith(f"{MODELS}/")


class _Answer:
    """The way back of one request: holds what may have to change until it is whole."""

    __slots__ = ("_body", "_held", "_models", "_send")

    def __init__(self, send: Send, models: bool) -> None:
        self._send = send
        self._models = models
        self._held: Message | None = None
        self._body = b""

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            kind = header(lower_case(message), b"content-type") or b""
            if kind.startswith(b"application/json") and (self._models or message["status"] >= 400):
                self._held = message
                return
        elif self._held is not None and message["type"] == "http.response.body":
            await self._add(self._held, message)
            return
        await self._send(message)

    async def _add(self, start: Message, message: Message) -> None:
        self._body += message.get("body", b"")
        more = message.get("more_body", False)
        if more and len(self._body) <= MAX_LIST_BYTES:
            return
        body, self._held, self._body = self._body, None, b""
        if body and not more:  # an answer to HEAD has none
            body = _changed(start["status"], body)
            length = (b"content-length", b"%d" % len(body))
            kept = [line for line in lower_case(start) if line[0] != length[0]]
            start = {**start, "headers": [*kept, length]}
        await self._send(start)
        await self._send({"type": "http.response.body", "body": body, "more_body": more})


def _changed(status: int, body: bytes) -> bytes:
    """Returns a whole body in Anthropic's form; one that is none of OpenAI's as it is."""
    if status >= 400:
        if len(body) > MAX_ERROR_BYTES:
            return body
        return encode_json(error_body(read_passed_error(status, body), MESSAGES))
    try:
        value = json.loads(body)
        if value.get("object") == "list":
            return encode_json(_list([_model(entry) for entry in value["data"]]))
        return encode_json(_model(value)) if value.get("object") == "model" else body
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError):
        return body


def _list(data: list[dict[str, Any]]) -> dict[str, Any]:
    ids = [entry["id"] for entry in data]
    ends = {"first_id": ids[0], "last_id": ids[-1]} if ids else {"first_id": None, "last_id": None}
    return {"data": data, "has_more": False, **ends}


def _model(entry: Mapping[str, Any]) -> dict[str, Any]:
    created = datetime.fromtimestamp(int(entry.get("created") or 0), UTC)
    return {
        "type": "model",
        "id": entry["id"],
        "display_name": entry["id"],
        "created_at": created.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
