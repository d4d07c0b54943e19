"""Runs a model's methods so that none can block the replica's event loop."""

from __future__ import annotations

import asyncio
import errno
import inspect
import logging
import os
from functools import partial
from typing import Any

from truthgpt_serve.config import ModelConfig
from truthgpt_serve.contract import FamilySpec, Model, create_model
from truthgpt_serve.errors import (
    DeadlineError,
    RegistryError,
    ServerError,
    UnavailableError,
    UnsupportedError,
)
from truthgpt_serve.garbage import rare_collections
from truthgpt_serve.hardware.plan import request_limits
from truthgpt_serve.http.file_store import FileStore, LocalFileStore
from truthgpt_serve.server.batching.batcher import Batcher, create_batcher
from truthgpt_serve.server.execution.calls import ModelCalls
from truthgpt_serve.server.execution.codec import Emit, OnePiece, PlainCodec, RequestCodec
from truthgpt_serve.server.execution.own_metrics import OwnMetrics
from truthgpt_serve.server.execution.workers import Workers
from truthgpt_serve.server.work import WorkMeter

logger = logging.getLogger(__name__)

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
        self._calls: ModelCalls | None = None
        self._batcher: Batcher | None = None
        self._own_metrics: OwnMetrics | None = None
        self.work = WorkMeter()

    @property
    def label(self) -> str:
        """The class's name, for messages."""
        return self.spec.class_path if self._cls is None else self._cls.__qualname__

    @property
    def ongoing(self) -> int:
        """Calls of the model that wait or run, those whose client has left included."""
        batched = self._batcher.ongoing if self._batcher else 0
        return batched + (self._calls.ongoing if self._calls else 0)

    @property
    def batcher(self) -> Batcher | None:
        """What makes batches of its requests; None where the class makes none."""
        return self._batcher

    async def metrics(self) -> str | None:
        """Returns the metrics of the class and of its batches, or None where there are neither."""
        parts = [] if self._own_metrics is None else [await self._own_metrics.read()]
        if self._batcher is not None:
            parts.append(self._batcher.metrics())
        return "".join(parts) if parts else None

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
        workers = Workers(threads, limit + waiting - threads, self.name)
        try:
            make = partial(create_model, self._cls, self.name)
            self.model = await asyncio.wrap_future(workers.submit(make))
            self._calls = ModelCalls(
                self.model,
                workers,
                self.label,
                on_event_loop=self.spec.on_event_loop,
                max_wait_s=self.max_request_s,
            )
            await self._calls.call("load", self.config.to_cfg())
        except BaseException:
            self._calls = None
            workers.close(CLOSE_TIMEOUT_S)
            raise
        if callable(own_metrics := getattr(self.model, "metrics", None)):
            self._own_metrics = OwnMetrics(own_metrics, f"{self.label}.metrics")
        if batches:
            batching = self.config.serving.batching
            self._batcher = create_batcher(
                workers, self.model, self.label, limit + waiting, batching
            )

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
        return self._loaded.workers

    @property
    def _loaded(self) -> ModelCalls:
        if self._calls is None:
            raise ServerError(f"model {self.name!r} is not started: await `start()` first")
        return self._calls

    async def infer(self, inputs: dict[str, Any]) -> Any:
        """Answers one request with what the class's `infer` returns."""
        return await self.run(PlainCodec(inputs))

    async def run(self, codec: RequestCodec) -> Any:
        """Calls `infer` with the codec's inputs; returns the codec's answer.

        Raises:
            OverloadedError: The queue is full.
            Exception: Whatever the class raised.
        """
        calls = self._loaded
        if self._batcher is not None:
            return await self._batcher.run(codec)
        return await calls.infer(codec)

    async def stream(self, codec: RequestCodec, emit: Emit) -> None:
        """Awaits `emit` with each of the codec's pieces and with its end; cancel it to stop.

        It pushes, because a chain of asynchronous generators costs more for each piece than all
        else here. A class without `stream` gives everything in one piece.

        Raises:
            OverloadedError: The queue is full.
            Exception: Whatever the class raised.
        """
        if self.streams:
            await self._loaded.stream(codec, emit)
        else:
            await emit(await self.run(OnePiece(codec)))

    async def check_health(self) -> None:
        """Raises what the class's `check_health` raises, if it has one.

        It runs beside a busy `infer`, in another thread.

        Raises:
            DeadlineError: It took longer than `serving.health_check_timeout_s`.
            UnavailableError: This process has no file descriptor left, and so takes no connection.
        """
        _check_files(self.label)
        limit_s = self.config.serving.health_check_timeout_s
        function = getattr(self.model, "check_health", None)
        if not callable(function):
            return
        try:
            await asyncio.wait_for(self._loaded.aside(function), limit_s)
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
        if self._calls is None:
            return
        if self._batcher is not None:
            await self._batcher.close(CLOSE_TIMEOUT_S)
        if callable(getattr(self.model, "close", None)):
            try:
                await asyncio.wait_for(self._calls.call("close"), CLOSE_TIMEOUT_S)
            except TimeoutError:
                logger.warning("%s.close took over %g s", self.label, CLOSE_TIMEOUT_S)
            except Exception:
                logger.exception("%s.close failed", self.label)
        calls, self._calls = self._calls, None
        await asyncio.to_thread(calls.close, CLOSE_TIMEOUT_S)


def _check_class(cls: type[Model]) -> None:
    """Refuses, before anything is loaded, a class whose `infer` is a generator."""
    infer = getattr(cls, "infer", None)
    if inspect.isgeneratorfunction(infer) or inspect.isasyncgenfunction(infer):
        raise RegistryError(
            f"{cls.__qualname__}.infer is a generator; name the method that yields `stream`, "
            "and return the whole output from `infer`"
        )


def _check_files(label: str) -> None:
    """Raises UnavailableError where nothing more can be opened, as after a leak of the class."""
    try:
        os.close(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise UnavailableError(
                f"{label} has no file descriptor left, and so can take no connection: "
                f"{error.strerror}"
            ) from None
