"""The vLLM family's class: the model contract around one engine.

Knows nothing of Ray. The engine runs on the event loop that `load` is awaited on. Inside a replica
vLLM's own application answers.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from deployments.vllm.application.admission import AdmittedRequests
from deployments.vllm.application.dead_engine import DeadEngineAnswers
from deployments.vllm.application.early_errors import EarlyErrors
from deployments.vllm.application.errors import ReadableErrors, report_validation
from deployments.vllm.application.generic import Cards, Dispatcher, create_backend
from deployments.vllm.application.request_models import refuse_misread_fields
from deployments.vllm.application.routes import ListedRoutes
from truthgpt_serve.errors import ServerError
from truthgpt_serve.http.caller import Bounds, Caller
from truthgpt_serve.server.bounded import BoundedRequests
from truthgpt_serve.server.openai_backend import OpenAIBackend


class VllmModel:
    """One language or embedding model on vLLM; all of it runs on the loop that loads it."""

    def __init__(self) -> None:
        self._name: str | None = None
        self._engine: Any = None
        self._app: Dispatcher | None = None
        self._backend: OpenAIBackend | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def set_name(self, name: str) -> None:
        """Sets the model name that clients send; without it, it is `run_name`."""
        self._name = name

    async def load(self, cfg: dict[str, Any]) -> None:
        """Imports vLLM, checks the arguments and starts the engine on the running event loop.

        Blocks the loop while the engine's processes load, as vLLM's own server does. The calling
        thread must live as long as the engine: see `orphans`.

        Raises:
            ConfigError: vLLM refuses an argument.
            UnavailableError: The engine did not start.
        """
        name = self._name = self._name or str(cfg["run_name"])
        engine = await asyncio.to_thread(_create_engine, cfg, name)
        self._loop = asyncio.get_running_loop()
        vllm_app = await engine.start()
        self._engine = engine
        try:
            self._surround(vllm_app, name, cfg["serving"])
        except BaseException:
            await engine.close()
            raise

    def _surround(self, vllm_app: Any, name: str, serving: dict[str, Any]) -> None:
        """Puts the product's own answers around vLLM's application."""
        engine = self._engine
        limits = {key: serving[key] for key in ("max_request_s", "max_body_bytes")}
        paths = [route.path for route in vllm_app.routes]
        report_validation(vllm_app)
        refuse_misread_fields(vllm_app)
        readable = ReadableErrors(EarlyErrors(vllm_app))
        answering = DeadEngineAnswers(readable, engine.is_dead, name)
        admitted = AdmittedRequests(answering, engine.limits, engine.grammars, **limits)
        # Requests of clients are bounded around all of this; those of ours must end, too.
        bounded = BoundedRequests(admitted, name, **limits)
        self._backend = create_backend(bounded, name, engine.tasks)
        backend = engine.acceleration, engine.capabilities
        cards = Cards(admitted, name, *backend, engine.adapters.failed)
        listed = ListedRoutes(admitted, paths, name)
        names = (name, *serving["aliases"])
        self._app = Dispatcher(listed, self._backend, cards, names, Bounds(**limits))

    async def create_asgi_app(self) -> Dispatcher:
        """Returns the application, for the event loop that the engine runs on."""
        self._ready()
        if self._app is None:
            raise ServerError(_NOT_LOADED)
        if self._engine.grammars is not None:
            # Beforehand, so that the first request with a grammar need not wait.
            self._engine.grammars.start()
        return self._app

    @property
    def acceleration(self) -> dict[str, Any]:
        """The model's backend, for its card; empty before the engine has started."""
        return {} if self._engine is None else dict(self._engine.acceleration)

    async def infer(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Answers one request; see `OpenAIBackend.infer`."""
        return await self._ready().infer(inputs, Caller(uuid.uuid4().hex))

    async def stream(self, inputs: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """Yields `{"text": delta}`; closing the generator stops the engine's work on it."""
        async with aclosing(self._ready().stream(inputs, Caller(uuid.uuid4().hex))) as deltas:
            async for delta in deltas:
                yield delta

    def check_health(self) -> None:
        """Raises when the engine is dead."""
        if self._engine is not None:
            self._engine.check_health()

    def queued_work(self) -> dict[str, float]:
        """Returns the work that waits in the engine, for scaling by it."""
        return {} if self._engine is None else dict(self._engine.queued_work())

    def fatal_error(self) -> str | None:
        """Returns why the engine is dead, or None."""
        return None if self._engine is None else self._engine.fatal_error()

    async def close(self) -> None:
        """Stops the engine and its processes; safe to call twice and at any time."""
        self._app = self._backend = None
        if self._engine is not None:
            await self._engine.close()

    def _ready(self) -> OpenAIBackend:
        if self._backend is None:
            raise ServerError(_NOT_LOADED)
        if asyncio.get_running_loop() is not self._loop:
            raise ServerError("the engine runs on another event loop: the one that loaded it")
        return self._backend


_NOT_LOADED = "the model is not loaded: await `load(cfg)` first"


def _create_engine(cfg: dict[str, Any], name: str) -> Any:
    from deployments.vllm.engine import Engine

    return Engine(cfg, name)
