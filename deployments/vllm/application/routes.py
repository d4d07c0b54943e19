"""Which of vLLM's routes a client reaches; every other path is answered as if it did not exist.

vLLM has routes for administrators, for development and for other servers beside those for
inference, and each release brings more, so those that pass are listed here by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from truthgpt_serve.http.asgi import Receive, Scope, Send, relative_path
from truthgpt_serve.http.connection import Connection, refuse_websocket
from truthgpt_serve.http.routes import find_routes, refuse

LISTED: dict[str, str] = {
    "/v1/models": "GET",
    "/v1/chat/completions": "POST",
    "/v1/chat/completions/batch": "POST",
    "/v1/completions": "POST",
    "/v1/responses": "POST",
    "/v1/responses/{id}": "GET",
    "/v1/responses/{id}/cancel": "POST",
    "/v1/messages": "POST",
    "/v1/messages/count_tokens": "POST",
    "/v1/embeddings": "POST",
    "/v1/rerank": "POST",
    "/rerank": "POST",
    "/v1/score": "POST",
    "/score": "POST",
    "/pooling": "POST",
    "/classify": "POST",
    "/tokenize": "POST",
    "/detokenize": "POST",
    "/v1/audio/transcriptions": "POST",
    "/v1/audio/translations": "POST",
    "/health": "GET",
    "/metrics": "GET",
}
"""vLLM's routes that a client reaches and their methods, as in `truthgpt_serve.http.routes`."""

_PARAMETER = re.compile(r"\{[^/]*\}")


class ListedRoutes:
    """vLLM's application, of which only the listed routes answer.

    Args:
        app: The application behind.
        paths: The paths of the routes that vLLM registered for this model.
        name: The model name, for messages.
    """

    def __init__(self, app: Any, paths: Iterable[str], name: str) -> None:
        self._app = app
        self._paths = {path for path in map(as_listed, paths) if path in LISTED}
        self._name = name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one connection."""
        if scope["type"] == "websocket":
            await refuse_websocket(scope, receive, send)
            return
        path = relative_path(scope)
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        found = {route.path for route in find_routes(path, "model")} & self._paths
        if any(LISTED[own] == method for own in found):
            await self._app({**scope, "method": method}, receive, send)
            return
        await Connection(scope, receive, send).fail(refuse(scope["method"], path, self._name))


def as_listed(path: str) -> str:
    """Returns the path of a route of vLLM's with every parameter called `{id}`."""
    return _PARAMETER.sub("{id}", path)
