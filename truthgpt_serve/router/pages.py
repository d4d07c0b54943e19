"""The routes that the router answers itself: models, health, readiness, documentation.

Reads the catalogue; relays nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from truthgpt_serve.errors import MethodError, ModelNotFoundError
from truthgpt_serve.router.catalogue import Catalogue, ModelEntry
from truthgpt_serve.router.openapi import DOCS_HTML, openapi_document
from truthgpt_serve.router.responses import Send, send_bytes, send_json

Page = Callable[[Send], Awaitable[None]]

_MODELS = "/v1/models"


class Pages:
    """Finds the page for a path."""

    def __init__(self, catalogue: Catalogue, fetch_metrics: Callable[[], Awaitable[bytes]]) -> None:
        self._catalogue = catalogue
        self._fetch_metrics = fetch_metrics
        self._pages: dict[str, Page] = {
            "/health": self._health,
            "/ready": self._ready,
            "/metrics": self._metrics,
            _MODELS: self._models,
            "/openapi.json": _openapi,
            "/docs": _docs,
            "/": _home,
        }

    def find(self, method: str, path: str) -> Page | None:
        """Returns the page at `path`, or None when the request is for a model.

        Raises:
            MethodError: The page exists, but only for GET and HEAD.
        """
        page = self._pages.get(path)
        if page is None and path.startswith(f"{_MODELS}/"):
            page = partial(self._model, path.removeprefix(f"{_MODELS}/"))
        if page is None:
            return None
        if method not in ("GET", "HEAD"):
            raise MethodError(f"{path} takes GET, not {method}")
        return page

    async def _health(self, send: Send) -> None:
        await send_json(send, {"status": "ok"})

    async def _ready(self, send: Send) -> None:
        models = {
            state.name: {"status": state.status, "num_running_replicas": state.num_running_replicas}
            for state in self._catalogue.states()
        }
        ready = self._catalogue.loaded and all(
            state.status == "RUNNING" for state in self._catalogue.states()
        )
        value = {"status": "ready" if ready else "not ready", "models": models}
        headers = [] if ready else [(b"retry-after", b"2")]
        await send_json(send, value, status=200 if ready else 503, headers=headers)

    async def _metrics(self, send: Send) -> None:
        await send_bytes(
            send, await self._fetch_metrics(), b"text/plain; version=0.0.4; charset=utf-8"
        )

    async def _models(self, send: Send) -> None:
        data = [_model_object(entry) for entry in self._catalogue.entries()]
        await send_json(send, {"object": "list", "data": data})

    async def _model(self, name: str, send: Send) -> None:
        try:
            entry = self._catalogue[name]
        except KeyError:
            raise ModelNotFoundError(f"The model {name!r} does not exist", param="model") from None
        await send_json(send, {**_model_object(entry), "card": entry.card})


def _model_object(entry: ModelEntry) -> dict[str, Any]:
    value = {
        "id": entry.name,
        "object": "model",
        "created": entry.created,
        "owned_by": "truthgpt-serve",
    }
    if entry.parent is not None:
        value["parent"] = entry.parent
    return value


async def _openapi(send: Send) -> None:
    await send_json(send, openapi_document())


async def _docs(send: Send) -> None:
    await send_bytes(send, DOCS_HTML, b"text/html; charset=utf-8")


async def _home(send: Send) -> None:
    headers = [(b"location", b"/docs"), (b"content-length", b"0")]
    await send({"type": "http.response.start", "status": 307, "headers": headers})
    await send({"type": "http.response.body", "body": b"", "more_body": False})
