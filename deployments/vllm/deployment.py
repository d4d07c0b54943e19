"""The vLLM family's class: the model contract around one engine.

Knows nothing of Ray. Inside a replica the engine runs on the replica's event loop and vLLM's own
application answers; called directly, as `truthgpt infer` does, it runs on a loop of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import uuid
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any, TypeVar

from deployments.vllm.application.admission import AdmittedRequests
from deployments.vllm.application.body_limits import BoundedBodies
from deployments.vllm.application.cancellation import CancellableApp
from deployments.vllm.application.dead_engine import DeadEngineAnswers
from deployments.vllm.application.early_errors import EarlyErrors
from deployments.vllm.application.errors import ReadableErrors, report_validation
from deployments.vllm.application.generic import Cards, Dispatcher, create_backend
from deployments.vllm.application.request_models import refuse_misread_fields
from deployments.vllm.application.routes import ListedRoutes
from truthgpt_serve.errors import ServerError
from truthgpt_serve.server.infer.routes import Bounds, Caller
from truthgpt_serve.server.openai_backend import OpenAIBackend

T = TypeVar("T")

CLOSE_TIMEOUT_S = 30.0


class VllmModel:
    """One language or embedding model on vLLM.

    Call `load`, then either await `create_asgi_app` on the event loop that will serve, or call
    `infer` and `stream` from any other thread.
    """

    def __init__(self) -> None:
        self._name: str | None = None
        self._names: tuple[str, ...] = ()
        self._engine: Any = None
        self._limits: dict[str, Any] = {}
        self._backend: OpenAIBackend | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()

    def set_name(self, name: str) -> None:
        """Sets the model name that clients send; without it, it is `run_name`."""
        self._name = name

    def load(self, cfg: dict[str, Any]) -> None:
        """Imports vLLM and checks the arguments. The weights load when the engine starts.

        Raises:
            ConfigError: vLLM refuses an argument.
        """
        from deployments.vllm.engine import Engine

        self._name = self._name or str(cfg["run_name"])
        self._names = (self._name, *cfg["serving"]["aliases"])
        self._limits = {key: cfg["serving"][key] for key in ("max_request_s", "max_body_bytes")}
        self._engine = Engine(cfg, self._name)

    async def create_asgi_app(self) -> Dispatcher:
        """Starts the engine on the running event loop; returns the application for it.

        Raises:
            UnavailableError: The engine did not start.
        """
        self._loop = asyncio.get_running_loop()
        app = await self._start()
        if self._engine.grammars is not None:
            # Beforehand, so that the first request with a grammar need not wait.
            self._engine.grammars.start()
        return app

    async def _start(self) -> Dispatcher:
        if self._engine is None or self._name is None:
            raise ServerError("the model is not loaded: call `load(cfg)` first")
        vllm_app = await self._engine.start()
        paths = [route.path for route in vllm_app.routes]
        report_validation(vllm_app)
        refuse_misread_fields(vllm_app)
        readable = ReadableErrors(EarlyErrors(vllm_app))
        answering = DeadEngineAnswers(readable, self._engine.is_dead, self._name)
        stoppable = CancellableApp(answering, max_request_s=self._limits["max_request_s"])
        admitted = AdmittedRequests(
            BoundedBodies(stoppable, **self._limits),
            self._engine.limits,
            self._engine.grammars,
            **self._limits,
        )
        self._backend = create_backend(admitted, self._name, self._engine.tasks)
        cards = Cards(admitted, self._name, self._engine.acceleration, self._engine.adapters.failed)
        listed = ListedRoutes(admitted, paths, self._name)
        return Dispatcher(listed, self._backend, cards, self._names, Bounds(**self._limits))

    @property
    def acceleration(self) -> dict[str, Any]:
        """What computes, for the model's card; empty before the engine has started."""
        return {} if self._engine is None else dict(self._engine.acceleration)

    def infer(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Answers one request; see `OpenAIBackend.infer`. Blocks the calling thread."""
        return self._call(self._ready().infer(inputs, Caller(uuid.uuid4().hex)))

    def stream(self, inputs: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Yields `{"text": delta}`; closing the generator stops the engine's work on it."""
        deltas = self._ready().stream(inputs, Caller(uuid.uuid4().hex))
        try:
            while (delta := self._call(_next(deltas))) is not None:
                yield delta
        finally:
            self._call(_close(deltas))

    def check_health(self) -> None:
        """Raises when the engine is dead."""
        if self._engine is not None:
            self._engine.check_health()

    def fatal_error(self) -> str | None:
        """Returns why the engine is dead, or None."""
        return None if self._engine is None else self._engine.fatal_error()

    def close(self) -> None:
        """Stops the engine and its processes; safe to call twice and at any time.

        Raises:
            ServerError: The engine did not stop within 30 s.
        """
        loop, engine = self._loop, self._engine
        self._loop = self._backend = None
        if loop is None or engine is None or loop.is_closed():
            return
        try:
            self._run(loop, engine.close(), CLOSE_TIMEOUT_S)
        except TimeoutError:
            raise ServerError(f"the engine did not stop within {CLOSE_TIMEOUT_S:g} s") from None
        finally:
            self._stop_thread(loop)

    def _ready(self) -> OpenAIBackend:
        """Returns what answers; starts the engine in a thread of its own if need be."""
        with self._starting:
            if self._loop is None:
                self._loop = self._start_thread()
                try:
                    self._run(self._loop, self._start())
                except BaseException:
                    loop, self._loop = self._loop, None
                    self._stop_thread(loop)
                    raise
        if self._backend is None:
            raise ServerError("the engine is still starting")
        return self._backend

    def _start_thread(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.new_event_loop()
        # The thread lives as long as the engine: its processes die with it.
        self._thread = threading.Thread(target=loop.run_forever, name="vllm", daemon=True)
        self._thread.start()
        return loop

    def _stop_thread(self, loop: asyncio.AbstractEventLoop) -> None:
        thread, self._thread = self._thread, None
        if thread is None:
            return
        loop.call_soon_threadsafe(loop.stop)
        thread.join(CLOSE_TIMEOUT_S)
        if not thread.is_alive():
            loop.close()

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        loop = self._loop
        if loop is None:
            work.close()
            raise ServerError("the model is closed")
        return self._run(loop, work)

    @staticmethod
    def _run(
        loop: asyncio.AbstractEventLoop,
        work: Coroutine[Any, Any, T],
        timeout_s: float | None = None,
    ) -> T:
        """Runs a coroutine on the engine's loop from another thread.

        Without a limit it waits as long as the engine works: the caller's own limit, such as the
        router's, ends the request.
        """
        with contextlib.suppress(RuntimeError):
            if asyncio.get_running_loop() is loop:
                work.close()
                raise ServerError("called on the engine's own event loop: call it in a thread")
        future = asyncio.run_coroutine_threadsafe(work, loop)
        try:
            return future.result(timeout_s)
        except BaseException:
            future.cancel()
            raise


async def _next(deltas: AsyncIterator[T]) -> T | None:
    return await anext(deltas, None)


async def _close(deltas: Any) -> None:
    await deltas.aclose()
