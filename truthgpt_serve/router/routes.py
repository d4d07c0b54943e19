"""The routes that the router answers itself: models, files, health, readiness, documentation.

Reads the directory; relays nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from truthgpt_serve.access.identity import ANONYMOUS, Identity
from truthgpt_serve.cluster.haproxy.playground import START_PATH
from truthgpt_serve.cluster.state import ApplicationState
from truthgpt_serve.errors import MethodError, MissingFileError, ModelNotFoundError
from truthgpt_serve.http.asgi import Send, send_bytes, send_json
from truthgpt_serve.http.file_store import FILES_PATH, FileStore, fetch_file
from truthgpt_serve.router.allowed import AllowedModels
from truthgpt_serve.router.backend_info import BackendInfo
from truthgpt_serve.router.discovery import ModelDirectory
from truthgpt_serve.router.model_entry import ModelEntry
from truthgpt_serve.router.open_inference import OpenInferenceRoutes
from truthgpt_serve.router.openapi import docs_html, openapi_json
from truthgpt_serve.router.start_page import StartPage
from truthgpt_serve.router.usage import PATH as USAGE_PATH
from truthgpt_serve.router.usage import UsageRoute

Handler = Callable[[Send], Awaitable[None]]

_MODELS = "/v1/models"
_PAGE_POLICY = (
    b"content-security-policy",
    b"default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'",
)
"""The page's own styles, and nothing else: no script and no other host."""


class RouterRoutes:
    """Finds the handler of a path.

    Args:
        directory: The models.
        backend_info: The backend info of models.
        fetch_metrics: Returns the metrics of this node.
        wake: Asks the playground for a path; it answers once it has started.
        files: Where models put results that clients fetch by address, or None.
        usage: Says what the keys used.
    """

    def __init__(
        self,
        directory: ModelDirectory,
        backend_info: BackendInfo,
        fetch_metrics: Callable[[], Awaitable[bytes]],
        wake: Callable[[bytes], Awaitable[object]],
        files: FileStore | None = None,
        usage: UsageRoute | None = None,
    ) -> None:
        self._directory = directory
        self._backend_info = backend_info
        self._fetch_metrics = fetch_metrics
        self._files = files
        self._usage = usage or UsageRoute(None)
        self._open_inference = OpenInferenceRoutes(directory)
        self.start_page = StartPage(directory.find_playground, wake)
        self._routes: dict[str, Handler] = {
            "/health": self._health,
            "/metrics": self._metrics,
            "/openapi.json": _openapi,
            "/docs": _docs,
            "/": self._home,
            START_PATH: self.start_page.answer,
        }

    def find(
        self, method: str, path: str, identity: Identity | None = None, query: bytes = b""
    ) -> Handler | None:
        """Returns the handler of `path`, or None when the request is for a model.

        Args:
            method: The request's method.
            path: Its path.
            identity: Who asks; None where the service asks for no keys.
            query: The query of its address.

        Raises:
            MethodError: The route exists, but only for GET and HEAD.
        """
        models = AllowedModels(self._directory, identity)
        handler = self._routes.get(path) or self._open_inference.find(path, models)
        if path == "/ready":
            handler = partial(self._ready, identity is not ANONYMOUS)
        elif path == USAGE_PATH:
            handler = partial(self._usage.answer, identity, query)
        elif path == _MODELS:
            handler = partial(self._models, models)
        elif handler is None and path.startswith(f"{_MODELS}/"):
            handler = partial(self._model, models, path.removeprefix(f"{_MODELS}/"))
        if handler is None and path.startswith(FILES_PATH):
            handler = partial(self._file, path.removeprefix(FILES_PATH))
        if handler is None:
            return None
        if method not in ("GET", "HEAD"):
            raise MethodError(f"{path} takes GET, not {method}", allow=("GET", "HEAD"))
        return handler

    async def _home(self, send: Send) -> None:
        playground = await self._directory.find_playground()
        would_start = playground and (
            playground.num_running_replicas or playground.status == "RUNNING"
        )
        location = b"/ui/" if would_start else b"/docs"
        headers = [(b"location", location), (b"content-length", b"0")]
        await send({"type": "http.response.start", "status": 307, "headers": headers})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _health(self, send: Send) -> None:
        await send_json(send, {"status": "ok"})

    async def _ready(self, causes: bool, send: Send) -> None:
        states, lost_s = self._directory.states(), self._directory.lost_s
        ready = self._directory.loaded and all(state.status == "RUNNING" for state in states)
        ready = ready and lost_s is None
        value: dict[str, Any] = {
            "status": "ready" if ready else "not ready",
            "models": {state.name: _state_object(state, causes=causes) for state in states},
        }
        if lost_s is not None:
            value["message"] = f"Ray Serve's controller has not answered for {lost_s:.0f} s"
        headers = [] if ready else [(b"retry-after", b"2")]
        await send_json(send, value, status=200 if ready else 503, headers=headers)

    async def _metrics(self, send: Send) -> None:
        await send_bytes(
            send, await self._fetch_metrics(), b"text/plain; version=0.0.4; charset=utf-8"
        )

    async def _models(self, models: AllowedModels, send: Send) -> None:
        data = [_model_object(entry) for entry in models.entries()]
        await send_json(send, {"object": "list", "data": data})

    async def _model(self, models: AllowedModels, name: str, send: Send) -> None:
        entry = await models.look_up(name)
        if entry is None:
            raise ModelNotFoundError(f"The model {name!r} does not exist", param="model")
        known = await self._backend_info.find(name)
        value = {
            **_model_object(entry),
            "card": entry.card,
            "acceleration": known.acceleration,
            "capabilities": known.capabilities,
        }
        states = {state.name: state for state in self._directory.states()}
        if (state := states.get(entry.application)) is not None:
            value["status"] = state.status
            value["last_error"] = state.last_error or (known.last_error if entry.running else None)
        await send_json(send, value)

    async def _file(self, file_id: str, send: Send) -> None:
        if self._files is None:
            raise MissingFileError(f"there is no file {file_id[:80]!r}")
        file = await fetch_file(self._files, file_id)
        await send_bytes(send, file.data, file.content_type.encode(), headers=file.headers())


def _state_object(state: ApplicationState, *, causes: bool) -> dict[str, Any]:
    """Returns what `/ready` says of a model; the last error only to those who have a key."""
    value: dict[str, Any] = {
        "status": state.status,
        "num_running_replicas": state.num_running_replicas,
    }
    if state.waits_for:
        value["message"] = state.waits_for
    if state.last_error and causes:
        value["last_error"] = state.last_error
    return value


def _model_object(entry: ModelEntry) -> dict[str, Any]:
    value = {
        "id": entry.name,
        "object": "model",
        "created": entry.created,
        "owned_by": "truthgpt-serve",
    }
    if entry.parent is not None:
        value["parent"] = entry.parent
    if entry.alias_of is not None:
        value["alias_of"] = entry.alias_of
    if entry.waits_for is not None:
        value["waits_for"] = entry.waits_for
    return value


async def _openapi(send: Send) -> None:
    document = await asyncio.to_thread(openapi_json)  # the first time it is read from its files
    await send_bytes(send, document, b"application/json")


async def _docs(send: Send) -> None:
    page = await asyncio.to_thread(docs_html)
    await send_bytes(send, page, b"text/html; charset=utf-8", headers=[_PAGE_POLICY])
