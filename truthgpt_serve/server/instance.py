"""Runs a model's methods so that none can block the replica's event loop."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from truthgpt_serve.channel import Channel
from truthgpt_serve.config import ModelConfig
from truthgpt_serve.contract import FamilySpec, Model, create_model
from truthgpt_serve.errors import DeadlineError, RegistryError, ServerError, UnsupportedError
from truthgpt_serve.garbage import rare_collections
from truthgpt_serve.hardware.plan import request_limits
from truthgpt_serve.http.file_store import FileStore, LocalFileStore
from truthgpt_serve.server.batching.batcher import Batcher, create_batcher, join_metrics
from truthgpt_serve.server.execution.codec import Emit, OnePiece, PlainCodec, RequestCodec
from truthgpt_serve.server.execution.streaming import Pump, direct_stream
from truthgpt_serve.server.execution.workers import Workers
from truthgpt_serve.server.work import WorkMeter
from truthgpt_serve.threads import contained_async

logger = logging.getLogger(__name__)
T = TypeVar("T")

CLOSE_TIMEOUT_S = 30.0


class ModelInstance:
    """Creates, loads, calls and closes one instance of a family's class.

    Blocking methods run in worker threads, asynchronous ones on an event loop of their own unless
    the family says that they never block (`FamilySpec.on_event_loop`). A class with only `infer`
    has one worker, so `load` and every `infer` run in the same thread, one at a time.

    Attributes:
        model: The instance; None before `start`.
        name: The model name that clients send.
        spec: The family.
        config: The configuration.
        files: Where results that are asked for as addresses lie; by default in this process.
        max_ongoing: Calls of the model that may run at once; known after `start`.
        work: The work of its requests, where their routes know it beforehand.
    """

    def __init__(
        self, spec: FamilySpec, config: ModelConfig, *, name: str, files: FileStore | None = None
    ) -> None:
        self.spec = spec
        self.config = config
        self.name = name
        self.files = LocalFileStore() if files is None else files
        self.max_ongoing = 1
        self.model: Any = None
        self._cls: type[Model] | None = None
        self._workers: Workers | None = None
        self._batcher: Batcher | None = None
        self._direct_ongoing = 0
        self.work = WorkMeter()

    @property
    def label(self) -> str:
        """The class's name, for messages."""
        return self.spec.class_path if self._cls is None else self._cls.__qualname__

    @property
    def ongoing(self) -> int:
        """Calls of the model that wait or run, those whose client has left included."""
        batched = self._batcher.ongoing if self._batcher else 0
        return self._direct_ongoing + batched + (self._workers.ongoing if self._workers else 0)

    @property
    def batcher(self) -> Batcher | None:
        """What makes batches of its requests; None where the class makes none."""
        return self._batcher

    def metrics(self) -> str | None:
        """Returns the metrics of the class and of its batches, or None where there are neither."""
        return join_metrics(getattr(self.model, "metrics", None), self._batcher)

    @property
    def streams(self) -> bool:
        """Whether the class has a `stream` method."""
        return callable(getattr(self.model, "stream", None))

    async def start(self) -> None:
        """Imports the class, makes the instance and loads it, all off the event loop.

        Loading has no time limit: large weights take as long as they take.

        Raises:
            RegistryError: The class cannot be made or breaks the contract.
        """
        with rare_collections():
            await self._start()

    async def _start(self) -> None:
        self._cls = await asyncio.to_thread(self.spec.load_class, self.config.task)
        _check_class(self._cls)
        limit, waiting = request_limits(self.config, self.spec)
        self.max_ongoing = limit
        batches = callable(getattr(self._cls, "infer_batch", None))
        threads = 1 if batches and not callable(getattr(self._cls, "stream", None)) else limit
        self._workers = Workers(threads, limit + waiting - threads, self.name)
        try:
            await asyncio.wrap_future(self._workers.submit(self._create))
            await self._call("load", self.config.to_cfg())
        except BaseException:
            workers, self._workers = self._workers, None
            workers.close(CLOSE_TIMEOUT_S)
            raise
        if batches:
            batching = self.config.serving.batching
            self._batcher = create_batcher(
                self._workers, self.model, self.label, limit + waiting, batching
            )

    def _create(self) -> None:
        self.model = create_model(self._cls or self.spec.load_class(), self.name)

    def check_task(self, task: str, routes: str) -> None:
        """Checks that the model has a task, for the routes that only its models have.

        Raises:
            UnsupportedError: It has another one.
        """
        own = self.config.task
        if own != task:
            message = f"the model {self.name!r} has task {own}, which has no {routes}"
            raise UnsupportedError(message, param="model")

    @property
    def max_request_s(self) -> float:
        """The longest time that one request may take, in seconds."""
        return self.config.serving.max_request_s

    @property
    def max_body_bytes(self) -> int:
        """The largest request body."""
        return self.config.serving.max_body_bytes

    @property
    def workers(self) -> Workers:
        """The threads of the started model.

        Raises:
            ServerError: The model is not started.
        """
        if self._workers is None:
            raise ServerError(f"model {self.name!r} is not started: await `start()` first")
        return self._workers

    async def _call(self, method: str, *args: Any) -> Any:
        """Calls a method, sync or async, in its place and returns the result."""
        function = getattr(self.model, method)
        if not inspect.iscoroutinefunction(function):
            result = await asyncio.wrap_future(self.workers.submit(lambda: function(*args)))
            if not inspect.isawaitable(result):
                return result
            return await self._run_async(lambda: _await(result))
        return await self._run_async(lambda: function(*args))

    async def _run_async(self, function: Callable[[], Coroutine[Any, Any, T]]) -> T:
        if self.spec.on_event_loop:
            self._direct_ongoing += 1
            try:
                return await contained_async(function)
            finally:
                self._direct_ongoing -= 1
        return await asyncio.wrap_future(self.workers.submit_async(function))

    async def infer(self, inputs: dict[str, Any]) -> Any:
        """Answers one request with what the class's `infer` returns."""
        return await self.run(PlainCodec(inputs))

    async def run(self, codec: RequestCodec) -> Any:
        """Calls `infer` with the codec's inputs; returns the codec's answer.

        Raises:
            OverloadedError: The queue is full.
            Exception: Whatever the class raised.
        """
        workers = self.workers
        if self._batcher is not None:
            return await self._batcher.run(codec)
        infer = self.model.infer
        if inspect.iscoroutinefunction(infer):

            async def call() -> Any:
                outputs = await infer(codec.inputs())
                return codec.encode(outputs)

            return await self._run_async(call)
        result = await workers.run(lambda: self._infer(infer, codec))
        if inspect.isawaitable(result):
            return await self._run_async(lambda: _answer(result, codec))
        return result

    def _infer(self, infer: Callable[[Any], Any], codec: RequestCodec) -> Any:
        outputs = infer(codec.inputs())
        if inspect.isawaitable(outputs):
            return outputs
        if inspect.isgenerator(outputs) or inspect.isasyncgen(outputs):
            raise ServerError(
                f"{self.label}.infer returned a {type(outputs).__name__}; "
                "name the method that yields `stream`, and return the whole output from `infer`"
            )
        return codec.encode(outputs)

    async def stream(self, codec: RequestCodec, emit: Emit) -> None:
        """Awaits `emit` with each of the codec's pieces and with its end; cancel it to stop.

        It pushes, because a chain of asynchronous generators costs more for each piece than all
        else here. A class without `stream` gives everything in one piece.

        Raises:
            OverloadedError: The queue is full.
            Exception: Whatever the class raised.
        """
        if not self.streams:
            await emit(await self.run(OnePiece(codec)))
            return
        method = self.model.stream
        if self.spec.on_event_loop and inspect.isasyncgenfunction(method):
            self._direct_ongoing += 1
            try:
                await direct_stream(method, codec, emit)
            finally:
                self._direct_ongoing -= 1
            return
        channel = Channel()
        pump = Pump(method, codec, channel, f"{self.label}.stream", self.max_request_s)
        work = pump.start(self.workers)
        try:
            while items := await channel.get():
                for item in items:
                    await emit(item)
        finally:
            channel.close()
            work.cancel()

    async def check_health(self) -> None:
        """Raises what the class's `check_health` raises; returns when it has none.

        It runs beside a busy `infer`, in another thread.

        Raises:
            DeadlineError: It took longer than `serving.health_check_timeout_s`.
        """
        limit_s = self.config.serving.health_check_timeout_s
        function = getattr(self.model, "check_health", None)
        if not callable(function):
            return
        if not inspect.iscoroutinefunction(function):
            work = asyncio.wrap_future(self.workers.submit_aside(function))
        elif self.spec.on_event_loop:
            work = asyncio.ensure_future(function())
        else:
            work = asyncio.wrap_future(self.workers.loop_thread.submit(function()))
        try:
            await asyncio.wait_for(work, limit_s)
        except TimeoutError:
            raise DeadlineError(
                f"{self.label}.check_health did not return within {limit_s:g} s"
            ) from None

    async def own_asgi_app(self) -> Any:
        """Returns the class's own application, or None if it makes none.

        An asynchronous `create_asgi_app` runs on the calling event loop, where the application
        will run; a blocking one in a worker thread.
        """
        function = getattr(self.model, "create_asgi_app", None)
        if not callable(function):
            return None
        if inspect.iscoroutinefunction(function):
            return await function()
        app = await asyncio.wrap_future(self.workers.submit(function))
        return await app if inspect.isawaitable(app) else app

    async def close(self) -> None:
        """Closes the model and its threads, waiting at most 30 s for what runs; never raises."""
        if self._workers is None:
            return
        if self._batcher is not None:
            await self._batcher.close(CLOSE_TIMEOUT_S)
        if callable(getattr(self.model, "close", None)):
            try:
                await asyncio.wait_for(self._call("close"), CLOSE_TIMEOUT_S)
            except TimeoutError:
                logger.warning("%s.close took over %g s", self.label, CLOSE_TIMEOUT_S)
            except Exception:
                logger.exception("%s.close failed", self.label)
        workers, self._workers = self._workers, None
        await asyncio.to_thread(workers.close, CLOSE_TIMEOUT_S)


async def _await(awaitable: Awaitable[T]) -> T:
    return await awaitable


async def _answer(awaitable: Awaitable[Any], codec: RequestCodec) -> Any:
    return codec.encode(await awaitable)


def _check_class(cls: type[Model]) -> None:
    """Refuses, before anything is loaded, a class whose `infer` is a generator."""
    infer = getattr(cls, "infer", None)
    if inspect.isgeneratorfunction(infer) or inspect.isasyncgenfunction(infer):
        raise RegistryError(
            f"{cls.__qualname__}.infer is a generator; name the method that yields `stream`, "
            "and return the whole output from `infer`"
        )
