"""Reads request bodies: as far as the model's name, until they are whole, or decompressed.

`model_field` finds the model's name in a body, `upload` sends a body on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from truthgpt_serve.body_limits import (
    MAX_BODY_BYTES,
    STALL_S,
    body_too_large,
    slow_body,
    stalled_body,
)
from truthgpt_serve.config import RouterConfig
from truthgpt_serve.http.asgi import Message, Receive, Replay, Scope, header
from truthgpt_serve.http.codings.body import decompress, plain_request
from truthgpt_serve.http.codings.decoder import content_coding
from truthgpt_serve.http.codings.growth import Grown, Growth
from truthgpt_serve.router.bodies.arrivals import GATHERED_BYTES, Arrivals
from truthgpt_serve.router.bodies.model_field import (
    MissingModelError,
    model_of_json,
    scanner_for,
    with_model,
)

BODY_METHODS = frozenset({"POST", "PUT", "PATCH"})
_TYPE, _ENCODING = b"content-type", b"content-encoding"


@dataclass(slots=True)
class RequestBody:
    """What of the body has been read, and how to read the rest.

    Attributes:
        pieces: Read already.
        num_bytes: Their size.
        more: Whether there is a rest.
        receive: ASGI `receive`.
        watch: Sees each further piece before it is sent; raises RequestError to end the upload.
        release: Called when what was read is not needed any more, as often as may be.
    """

    pieces: list[bytes]
    num_bytes: int
    more: bool
    receive: Receive
    watch: Callable[[bytes], object] = lambda piece: None
    release: Callable[[], None] = lambda: None

    def sent(self) -> None:
        """Lets go of what was read: it has been sent on, and need not be again."""
        self.pieces = []
        self.release()
        if isinstance(self.receive, Replay):
            self.receive.release()


class ClientLeftError(Exception):
    """The client closed its connection; no answer can be sent."""


def check_size(num_bytes: int, max_body_bytes: int) -> None:
    """Raises TooLargeError for a body above the limit."""
    if num_bytes > max_body_bytes:
        raise body_too_large(max_body_bytes, "the router's `max_body_bytes`")


async def receive_piece(receive: Receive) -> Message:
    """Returns the next ASGI message.

    Raises:
        SlowRequestError: Nothing more of the body came for 25 s.
    """
    try:
        async with asyncio.timeout(STALL_S):
            return await receive()
    except TimeoutError:
        raise stalled_body(STALL_S) from None


def take(message: Message, body: RequestBody) -> bytes:
    """Adds the next piece to what has been read, and returns it. Raises ClientLeftError."""
    if message["type"] == "http.disconnect":
        raise ClientLeftError
    piece: bytes = message.get("body", b"")
    body.pieces.append(piece)
    body.num_bytes += len(piece)
    body.more = message.get("more_body", False)
    return piece


def is_encoded(scope: Scope) -> bool:
    """Returns whether a request's body may be compressed."""
    return header(scope["headers"], _ENCODING) is not None


async def read_name(
    body: RequestBody,
    content_type: bytes,
    max_body_bytes: int = MAX_BODY_BYTES,
    read: Callable[[RequestBody], Awaitable[bytes]] | None = None,
) -> str:
    """Returns the model that a body names, of which the first piece has been read.

    Args:
        body: The body.
        content_type: Its type.
        max_body_bytes: Its largest size.
        read: Reads the next piece; None for one that only waits for it.

    Raises:
        RequestError: The body is malformed or names none.
        ClientLeftError: The client left.
    """
    check_size(body.num_bytes, max_body_bytes)
    if not body.more and content_type[:10].lower() != b"multipart/":
        return model_of_json(body.pieces[0])
    scanner, piece = scanner_for(content_type), body.pieces[0]
    while True:
        model = scanner.feed(piece)
        if model is not None:
            body.watch = scanner.watch(body.pieces)
            return model
        if not body.more:
            return scanner.finish(body.pieces)
        if read is None:
            piece = take(await receive_piece(body.receive), body)
        else:
            piece = await read(body)
        check_size(body.num_bytes, max_body_bytes)


class BodyReader:
    """Reads the bodies of one router's requests.

    Args:
        config: Limits and timeouts.

    Attributes:
        arrivals: Bodies that are being read before a model has them.
    """

    def __init__(self, config: RouterConfig) -> None:
        self._max_bytes = config.max_body_bytes
        self._limit_s = config.request_timeout_s
        self._grown = Grown()
        self.arrivals = Arrivals()

    @asynccontextmanager
    async def decoded(self, scope: Scope, receive: Receive) -> AsyncIterator[tuple[Scope, Receive]]:
        """Yields a request as if its body had come without compression.

        What it has grown by is counted until it has been sent on, or the block ends.

        Raises:
            CodingError: It is compressed otherwise than is supported.
            RequestError: It is damaged, or too large with or without compression.
            OverloadedError: All such bodies together are too large.
            ClientLeftError: The client left.
        """
        coding = content_coding(header(scope["headers"], _ENCODING))
        if not coding:
            yield scope, receive
            return
        self._check_length(scope)
        with self._grown.body() as growth:
            body = await self._decompress(receive, coding, growth)
            yield plain_request(scope, receive, body, growth.release)

    async def _decompress(self, receive: Receive, coding: str, growth: Growth) -> list[bytes]:
        body = RequestBody([], 0, True, receive)
        try:
            async with self._arriving() as read:
                while body.more:
                    await read(body)
            packed = b"".join(body.pieces)
            return await decompress(packed, coding, self._max_bytes, growth.reach)
        finally:
            body.release()

    async def gather(self, body: RequestBody) -> None:
        """Reads on until a body is whole, or large: slow clients take up no place at a model."""
        async with self._arriving(keeps=False) as read:
            while body.more and body.num_bytes < GATHERED_BYTES:
                body.watch(await read(body))

    async def take_unread(self, scope: Scope, receive: Receive) -> RequestBody:
        """Returns the body of a request whose path names the model: only what is there already."""
        self._check_length(scope)
        body = RequestBody([], 0, True, receive)
        take(await self._first_piece(receive), body)
        check_size(body.num_bytes, self._max_bytes)
        return body

    async def read_model(
        self, scope: Scope, receive: Receive, only_model: str | None
    ) -> tuple[str, RequestBody]:
        """Returns the model that a body names, and what was read of it.

        Args:
            scope: The request's.
            receive: The request's.
            only_model: What a body without `model` means, where there is but one model.

        Raises:
            RequestError: The body is malformed or names none.
        """
        content_type = header(scope["headers"], _TYPE) or b""
        self._check_length(scope)
        body = RequestBody([], 0, True, receive)
        take(await self._first_piece(receive), body)
        try:
            if not body.more:
                return await read_name(body, content_type, self._max_bytes), body
            async with self._arriving() as read:
                return await read_name(body, content_type, self._max_bytes, read), body
        except MissingModelError:
            if only_model is None:
                raise
            body.pieces[:] = with_model(b"".join(body.pieces), content_type, only_model)
            body.num_bytes = sum(map(len, body.pieces))
            return only_model, body

    def _check_length(self, scope: Scope) -> None:
        for name, value in scope["headers"]:
            if name == b"content-length" and value.isdigit():
                check_size(int(value), self._max_bytes)

    async def _first_piece(self, receive: Receive) -> Message:
        if self._limit_s > STALL_S:
            return await receive_piece(receive)
        async with self._in_time():
            return await receive()

    @asynccontextmanager
    async def _arriving(
        self, *, keeps: bool = True
    ) -> AsyncIterator[Callable[[RequestBody], Awaitable[bytes]]]:
        """Yields what reads and returns the next piece of a body.

        Args:
            keeps: Whether it counts what is kept of the body.
        """
        with self.arrivals.body() as arrival:

            async def read(body: RequestBody) -> bytes:
                piece = take(await arrival.receive(body.receive), body)
                check_size(body.num_bytes, self._max_bytes)
                if keeps:
                    body.release = arrival.release
                    arrival.keep(body.num_bytes)
                return piece

            async with self._in_time():
                yield read

    @asynccontextmanager
    async def _in_time(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._limit_s):
                yield
        except TimeoutError:
            raise slow_body(self._limit_s) from None
