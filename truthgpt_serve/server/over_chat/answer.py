"""The way back of a translated request: a chat answer becomes one of the API that was asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import msgspec

from truthgpt_serve.errors import TruthGPTError, UpstreamError
from truthgpt_serve.http.asgi import Headers, Message, send_error
from truthgpt_serve.http.connection import Connection
from truthgpt_serve.http.envelope import error_event
from truthgpt_serve.http.foreign_errors import MAX_ERROR_BYTES, read_error, read_passed_error
from truthgpt_serve.http.headers import BODY_HEADERS, lower_case
from truthgpt_serve.http.sse import DONE, EventSplitter, EventTooLargeError, is_event_stream
from truthgpt_serve.server.over_chat.field_names import FieldNames

MAX_ANSWER_BYTES = 256 * 1024 * 1024
_UNREADABLE = (LookupError, TypeError, ValueError, AttributeError, EventTooLargeError)


class Translation(Protocol):
    """Makes one answer of another API. What it cannot read raises one of `_UNREADABLE`.

    Attributes:
        ended: Whether the chat answer has said why it ended.
    """

    @property
    def ended(self) -> bool:
        """Whether the chat answer has said why it ended."""

    def whole(self, answer: Mapping[str, Any]) -> bytes:
        """Returns the body for a chat answer that is not streamed."""

    def feed(self, chunk: Mapping[str, Any]) -> bytes:
        """Returns the events for a chunk of a stream."""

    def finish(self) -> bytes:
        """Returns the events behind the last chunk."""


class TranslatedAnswer:
    """Takes the messages of the chat route's answer and sends those of the translation.

    Args:
        connection: The request; nothing has been sent yet.
        translation: Makes the answer.
        names: What the chat request's parts are called in the client's API.
        path: The route behind.
        name: The model name, for messages.
    """

    def __init__(
        self,
        connection: Connection,
        translation: Translation,
        names: FieldNames,
        *,
        path: str,
        name: str,
    ) -> None:
        self._connection = connection
        self._names = names
        self._path = path
        self._name = name
        self._translation = translation
        self._status = 200
        self._headers: Headers = []
        self._events: EventSplitter | None = None
        self._body = bytearray()
        self._over = False

    async def send(self, message: Message) -> None:
        """Takes one message of the chat route's."""
        if message["type"] == "http.response.start":
            await self._start(message)
        elif message["type"] == "http.response.body" and not self._over:
            data, more = message.get("body", b""), message.get("more_body", False)
            if self._events is not None:
                await self._stream(self._events, data, more=more)
            else:
                await self._gather(data, more=more)

    async def _start(self, message: Message) -> None:
        headers = lower_case(message)
        self._status = message["status"]
        self._headers = [line for line in headers if line[0] not in BODY_HEADERS]
        if self._status < 400 and is_event_stream(headers):
            self._events = EventSplitter(MAX_ANSWER_BYTES)
            kept = [line for line in headers if line[0] != b"content-length"]
            self._connection.started = True
            await self._connection.send({**message, "headers": kept})

    async def _gather(self, data: bytes, *, more: bool) -> None:
        self._body += data
        limit = MAX_ERROR_BYTES if self._status >= 400 else MAX_ANSWER_BYTES
        if more and len(self._body) <= limit:
            return
        self._over = True
        connection = self._connection
        connection.started = True
        try:
            body = self._whole()
        except TruthGPTError as error:
            headers, path = self._headers, connection.path
            await send_error(connection.send, error, headers=headers, path=path)
            return
        lines = [
            *self._headers,
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
        ]
        start = {"type": "http.response.start", "status": self._status, "headers": lines}
        await connection.send(start)
        await connection.send({"type": "http.response.body", "body": body})

    def _whole(self) -> bytes:
        body = bytes(self._body)
        if self._status >= 400:
            body = body[:MAX_ERROR_BYTES]
            error = read_error(self._status, body, method="POST", path=self._path, model=self._name)
            raise self._names.reword(error or read_passed_error(self._status, body))
        try:
            return self._translation.whole(msgspec.json.decode(body))
        except _UNREADABLE as error:
            raise _unreadable(error) from error

    async def _stream(self, events: EventSplitter, data: bytes, *, more: bool) -> None:
        out = b""
        try:
            for event in events.feed(data):
                out += self._take(event)
            if not more:
                for event in events.finish():
                    out += self._take(event)
                out += self._end()
        except TruthGPTError as error:
            self._over = True
            out += error_event(error, self._connection.path)
        except _UNREADABLE as error:
            self._over = True
            out += error_event(_unreadable(error), self._connection.path)
        more = more and not self._over
        if out or not more:
            body = {"type": "http.response.body", "body": out, "more_body": more}
            await self._connection.send(body)

    def _take(self, event: bytes) -> bytes:
        if self._over:
            return b""
        if event == DONE:
            return self._end()
        value = msgspec.json.decode(event)
        if "error" in value and "choices" not in value:
            raise self._names.reword(read_passed_error(UpstreamError.status, event))
        return self._translation.feed(value)

    def _end(self) -> bytes:
        if self._over:
            return b""
        if not self._translation.ended:
            raise UpstreamError("the model's stream ended before it was whole")
        self._over = True
        return self._translation.finish()


def _unreadable(error: Exception) -> TruthGPTError:
    kind = type(error).__name__
    return UpstreamError(f"the chat route answered what cannot be read ({kind}: {error})")
