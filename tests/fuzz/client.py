"""Sends one request as its bytes stand, and reads what comes back, whatever it is."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import httptools

from tests.fuzz.mutations import body_of
from tests.fuzz.requests import Request


@dataclass(slots=True)
class Answer:
    """What came back.

    Attributes:
        status: HTTP status; 0 when the connection was closed without one.
        content_type: Its type.
        body: The body, as far as it came.
        whole: Whether it came to its end.
        seconds: From the request's first byte to the end.
        note: What went wrong with the connection, if anything.
        retry_after: Value of `retry-after`, or nothing.
    """

    status: int = 0
    content_type: str = ""
    body: bytes = b""
    whole: bool = False
    seconds: float = 0.0
    note: str = ""
    retry_after: str = ""


class _Reader:
    """Callbacks of the C parser; a second answer on the same connection is not read."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.parser = httptools.HttpResponseParser(self)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.answer.whole:
            return
        if name.lower() == b"content-type":
            self.answer.content_type = value.decode("latin-1")
        elif name.lower() == b"retry-after":
            self.answer.retry_after = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        if not self.answer.whole:
            self.answer.status = self.parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        if not self.answer.whole:
            self.answer.body += body

    def on_message_complete(self) -> None:
        self.answer.whole = self.answer.status >= 200


def bytes_of(request: Request) -> bytes:
    """Returns a request as it goes over the wire."""
    if request.raw is not None:
        return request.raw
    body = body_of(request)
    lines = [f"{request.method} {request.path} HTTP/1.1".encode("latin-1", "replace")]
    lines += [b"host: fuzz", b"connection: close"]
    if request.content_type is not None:
        lines.append(b"content-type: " + request.content_type.encode("latin-1", "replace"))
    lines += [name + b": " + value for name, value in request.headers]
    if body is not None and not any(name == b"content-length" for name, _ in request.headers):
        lines.append(b"content-length: %d" % len(body))
    return b"\r\n".join([*lines, b"", body or b""])


async def send(host: str, port: int, request: Request, limit_s: float) -> Answer:
    """Sends a request on a connection of its own; never raises for what the service does."""
    answer = Answer()
    started = time.monotonic()
    writer = None
    try:
        async with asyncio.timeout(limit_s):
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(bytes_of(request))
            if request.ends:
                writer.write_eof()
            await _read(reader, answer, is_head=request.method == "HEAD")
    except TimeoutError:
        answer.note = f"not whole after {limit_s:g} s"
    except (OSError, httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
        answer.note = f"{type(error).__name__}: {error}"
    finally:
        if writer is not None:
            writer.transport.abort()
    answer.seconds = time.monotonic() - started
    return answer


async def _read(reader: asyncio.StreamReader, answer: Answer, *, is_head: bool) -> None:
    parser = _Reader(answer)
    while not answer.whole:
        data = await reader.read(65536)
        if not data:
            if answer.status and not answer.whole:
                answer.note = "cut"
            return
        parser.parser.feed_data(data)
        if is_head and answer.status >= 200:
            answer.whole = True
