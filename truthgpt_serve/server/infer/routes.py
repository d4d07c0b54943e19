"""The route `/v1/infer` of an application whose answers another server or engine makes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol

from truthgpt_serve.http.asgi import Headers
from truthgpt_serve.http.connection import Connection
from truthgpt_serve.http.json_body import parse_object
from truthgpt_serve.server.infer.codec import InferCodec

PATH = "/v1/infer"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: what goes along with the inputs.

    Attributes:
        request_id: For the logs.
        model: The model's or an adapter's name; None for the model.
        headers: The client's, names in lower case.
    """

    request_id: str
    model: str | None = None
    headers: Headers | tuple[()] = ()


class Backend(Protocol):
    """What makes the answers."""

    async def infer(self, inputs: Mapping[str, Any], caller: Caller) -> dict[str, Any]:
        """Returns the outputs."""

    def stream(
        self, inputs: Mapping[str, Any], caller: Caller
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Yields the items of a stream."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one request may take.

    Attributes:
        max_request_s: Seconds until its answer is whole.
        max_body_bytes: Size of its body.
    """

    max_request_s: float
    max_body_bytes: int


class InferRoute:
    """Handles `POST /v1/infer`.

    Args:
        backend: Makes the answers.
        label: The class's name, for messages.
        find_name: Returns the name that the backend knows a request's `model` by, or raises
            ModelNotFoundError.
        bounds: What one request may take.
    """

    def __init__(
        self, backend: Backend, label: str, find_name: Callable[[str], str], bounds: Bounds
    ) -> None:
        self._backend = backend
        self._label = label
        self._find_name = find_name
        self._bounds = bounds

    async def __call__(self, connection: Connection) -> None:
        """Answers one request."""
        bounds = self._bounds
        body = parse_object(await connection.read(bounds.max_body_bytes, bounds.max_request_s))
        codec = InferCodec(body, self._label)
        codec.name_model(self._find_name(codec.model))
        caller = Caller(connection.request_id, codec.model, connection.scope["headers"])
        async with connection.guard(bounds.max_request_s) as guard:
            if not codec.stream:
                outputs = await self._backend.infer(codec.inputs(), caller)
                answer = await asyncio.to_thread(codec.encode, outputs)  # images take long
                guard.release()
                await connection.reply(answer)
                return
            async with aclosing(self._backend.stream(codec.inputs(), caller)) as items:
                async for item in items:
                    await connection.emit(codec.encode_chunk(item))
            guard.release()
            await connection.emit(codec.encode_end())
            await connection.end_events()
