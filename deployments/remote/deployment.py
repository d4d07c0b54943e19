"""The family `remote` as a model class: reads the configuration and puts the parts together.

Knows nothing of Ray. Inside a replica one set of connections serves all requests; called directly,
as `truthgpt infer` does, each call has connections of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from deployments.remote.address import Addresses
from deployments.remote.application import RemoteApplication
from deployments.remote.config import RemoteSettings, check_server
from deployments.remote.engine import Remote
from deployments.remote.headers import RequestHeaders
from deployments.remote.health import Monitor
from deployments.remote.relay import Relay
from deployments.remote.transport import RemoteTransport
from truthgpt_serve.config.faults import faults_of
from truthgpt_serve.config.source import Source, parse_dotted
from truthgpt_serve.errors import ConfigError, DeadlineError, Fault, ServerError
from truthgpt_serve.http.caller import Bounds, Caller
from truthgpt_serve.server.openai_backend import Kind, OpenAIBackend

logger = logging.getLogger(__name__)

_PLACE = Source("configuration")
_NO_INPUTS = (
    "a remote model with task custom has no inputs of its own: send the remote server's own "
    "routes, or set the task"
)
_KEY = re.compile(r"[!-~]+")


@dataclass(frozen=True, slots=True)
class _Parts:
    """What serves one configuration; `remote` has to be entered while the others are used."""

    remote: Remote
    headers: RequestHeaders
    monitor: Monitor
    relay: Relay
    backend: OpenAIBackend


class RemoteModel:
    """One model of another OpenAI-compatible server."""

    def __init__(self) -> None:
        self._name: str | None = None
        self._cfg: dict[str, Any] = {}
        self._settings = RemoteSettings()
        self._key: str | None = None
        self._limits = Bounds(600, 2**30)
        self._parts: _Parts | None = None
        self._watch: asyncio.Task[None] | None = None

    def set_name(self, name: str) -> None:
        """Sets the model name that clients send; without it, it is `run_name`."""
        self._name = name

    async def load(self, cfg: dict[str, Any]) -> None:
        """Reads the settings and the key, and asks once whether the remote server answers.

        One that does not may come later: the model starts all the same, and the log says so.

        Raises:
            ConfigError: A setting is wrong, or the key's variable is not set.
        """
        self._settings = _read_settings(cfg)
        self._key = _read_key(self._settings)
        self._cfg = cfg
        self._name = self._name or str(cfg["run_name"])
        serving, settings = cfg["serving"], self._settings
        limit_s = min(serving["max_request_s"], settings.request_timeout_s or float("inf"))
        self._limits = Bounds(limit_s, serving["max_body_bytes"])
        self._parts = parts = self._build()
        async with parts.remote:
            await parts.monitor.check()
        addresses, state = parts.remote.addresses, parts.monitor.describe()
        level = logging.WARNING if "reason" in state else logging.INFO
        logger.log(level, "model %r is relayed to %s: %s", self._name, addresses.origin, state)
        if self._key is not None and not addresses.is_encrypted and not addresses.is_local:
            logger.warning("the key for %s travels unencrypted: use https", addresses.origin)

    def _loaded(self) -> _Parts:
        if self._parts is None:
            raise ServerError("the model is not loaded: call `load(cfg)` first")
        return self._parts

    def _build(self) -> _Parts:
        settings, name = self._settings, str(self._name)
        addresses = Addresses(self._cfg["model"]["name_or_path"])
        remote = Remote(addresses, settings, name)
        identity = (name, addresses.base, settings.model or "")
        headers = RequestHeaders(settings.headers, self._key_header(), identity)
        monitor = Monitor(remote, headers, settings, name)
        relay = Relay(remote, headers, monitor, settings, self._names(), self._limits)
        text: Kind = "chat" if settings.infer_with == "chat" else "completion"
        kinds: dict[str, Kind] = {
            "text-generation": text,
            "embedding": "embedding",
            "image-generation": "image",
        }
        backend = OpenAIBackend(
            RemoteTransport(remote, headers, monitor, relay),
            kinds.get(self._cfg["task"]),
            with_usage=True,
            unsupported=_NO_INPUTS,
        )
        return _Parts(remote, headers, monitor, relay, backend)

    def _names(self) -> tuple[str, ...]:
        return (str(self._name), *self._cfg["serving"]["aliases"])

    def _key_header(self) -> tuple[str, str] | None:
        if self._key is None:
            return None
        name = self._settings.api_key_header
        return name, f"Bearer {self._key}" if name == "authorization" else self._key

    async def create_asgi_app(self) -> RemoteApplication:
        """Opens the connections on the running event loop, and starts to follow the server."""
        parts = self._loaded()
        await parts.remote.__aenter__()
        if self._settings.health_path is not None:
            self._watch = asyncio.create_task(parts.monitor.run(), name="remote health")
        return RemoteApplication(
            self._names(),
            parts.relay,
            parts.backend,
            parts.monitor,
            self._limits,
            self._settings.paths,
            is_text=self._cfg["task"] == "text-generation",
        )

    @contextlib.asynccontextmanager
    async def _backend(self) -> AsyncIterator[OpenAIBackend]:
        parts = self._loaded()
        if parts.remote.is_open:
            yield parts.backend
            return
        parts = self._build()
        async with parts.remote:
            yield parts.backend

    async def infer(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Answers one request by the task's contract; see `OpenAIBackend.infer`."""
        limit_s = self._limits.max_request_s
        try:
            async with asyncio.timeout(limit_s), self._backend() as backend:
                return await backend.infer(inputs, Caller(os.urandom(16).hex()))
        except TimeoutError:
            raise DeadlineError(f"the model did not finish within {limit_s:g} s") from None

    async def stream(self, inputs: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """Yields `{"text": delta}`; closing the generator ends the remote server's work on it."""
        async with self._backend() as backend:
            items = backend.stream(inputs, Caller(os.urandom(16).hex()))
            async with contextlib.aclosing(items):
                async for item in items:
                    yield item

    async def check_health(self) -> None:
        """Raises only when this replica itself is broken: a new one mends no remote server."""
        if self._watch is not None and self._watch.done():
            raise ServerError("the task that follows the remote server has ended")

    async def close(self) -> None:
        """Closes the connections; safe to call twice and at any time."""
        parts, watch = self._parts, self._watch
        self._parts = self._watch = None
        if watch is not None:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
        if parts is not None:
            await parts.remote.__aexit__(None, None, None)


def _read_settings(cfg: Mapping[str, Any]) -> RemoteSettings:
    try:
        settings = RemoteSettings.model_validate(cfg["serving"]["engine"])
    except ValidationError as error:
        faults = faults_of(error, RemoteSettings, _PLACE.under("serving", "engine"))
        raise ConfigError(faults) from None  # the cause would show the values
    found = check_server(cfg)
    if found:
        raise ConfigError(
            [replace(fault, place=_PLACE.at(*parse_dotted(fault.place))) for fault in found]
        )
    return settings


def _read_key(settings: RemoteSettings) -> str | None:
    name = settings.api_key_env
    if name is None:
        return None
    key = os.environ.get(name, "").strip()
    if not key:
        message = f"the environment variable {name} is not set where the replica runs"
        fix = "set it to the remote server's key before Ray starts, or in runtime_env.env_vars"
    elif not _KEY.fullmatch(key):
        message = f"the environment variable {name} holds what cannot be a key"
        fix = "set it to the key alone: visible ASCII characters without spaces"
    else:
        return key
    raise ConfigError([Fault(_PLACE.at("serving", "engine", "api_key_env"), message, fix)])
