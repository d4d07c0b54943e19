"""The route `/v1/infer`: of a model in this process, or of one behind another server or engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Any, Protocol

from truthgpt_serve.http.caller import Bounds, Caller
from truthgpt_serve.http.connection import Connection
from truthgpt_serve.http.json_body import parse_object
from truthgpt_serve.request_schema import read_request
from truthgpt_serve.server.execution.codec import Emit
from truthgpt_serve.server.infer.codec import InferCodec, InferRequest
from truthgpt_serve.server.infer.counts import InferCount

PATH = "/v1/infer"


class Runner(Protocol):
    """Answers requests: a `ModelInstance`, or an `OverBackend`."""

    @property
    def label(self) -> str:
        """The class's name, for messages."""

    async def run(self, codec: InferCodec) -> Any:
        """Returns the body of a whole answer."""

    async def stream(self, codec: InferCodec, emit: Emit) -> None:
        """Emits the events of a stream, and its end."""


class Backend(Protocol):
    """Makes outputs elsewhere: this process only waits for them."""

    async def infer(self, inputs: Mapping[str, Any], caller: Caller) -> dict[str, Any]:
        """Returns the outputs."""

    def stream(
        self, inputs: Mapping[str, Any], caller: Caller
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Yields the items of a stream."""


class OverBackend:
    """Runs requests on the event loop, around a backend.

    Args:
        backend: Makes the outputs.
        label: The class's name, for messages.
    """

    def __init__(self, backend: Backend, label: str) -> None:
        self._backend = backend
        self.label = label

    async def run(self, codec: InferCodec) -> bytes:
        """Returns the body of a whole answer."""
        outputs = await self._backend.infer(codec.inputs(), codec.caller)
        return await asyncio.to_thread(codec.encode, outputs)  # images take long

    async def stream(self, codec: InferCodec, emit: Emit) -> None:
        """Emits the events of a stream, and its end."""
        async with aclosing(self._backend.stream(codec.inputs(), codec.caller)) as items:
            async for item in items:
                await emit(codec.encode_chunk(item))
        await emit(codec.encode_end())


class InferRoute:
    """Handles `POST /v1/infer`.

    Args:
        runner: Answers the requests.
        find_name: Returns the name that the runner knows a request's `model` by, or raises
            ModelNotFoundError.
        bounds: What one request may take.
        count: Makes what counts a request; None where an engine does.
    """

    def __init__(
        self,
        runner: Runner,
        find_name: Callable[[str], str],
        bounds: Bounds,
        count: Callable[[], InferCount] | None = None,
    ) -> None:
        self._runner = runner
        self._find_name = find_name
        self._bounds = bounds
        self._count = count

    async def __call__(self, connection: Connection) -> None:
        """Answers one request."""
        bounds = self._bounds
        body = parse_object(await connection.read(bounds.max_body_bytes, bounds.max_request_s))
        request = read_request(InferRequest, body)
        name = self._find_name(request.model)
        caller = Caller(connection.request_id, name, connection.scope["headers"])
        count = None if self._count is None else self._count()
        codec = InferCodec(request, caller, self._runner.label, count)
        async with connection.guard(bounds.max_request_s) as guard:
            if count is not None:
                await count.begin(request.inputs)
            if not request.stream:
                answer = await self._runner.run(codec)
                guard.release()
                await connection.reply(answer)
                return
            await self._runner.stream(codec, connection.emit)
            guard.release()
            await connection.end_events()
