"""The product's own routes, `POST /v1/infer` and `GET /v1/models/{id}`, beside vLLM's application.

They are answered by calling vLLM's OpenAI routes in the same process, so that sampling fields,
limits and adapters mean the same on both.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from deployments.vllm.application.local_request import LocalRequest
from deployments.vllm.tracing import trace_headers
from truthgpt_serve.errors import (
    ModelNotFoundError,
    OverloadedError,
    RequestError,
    ServerError,
    TooLargeError,
    TruthGPTError,
    UnavailableError,
    failed_adapter,
    not_here,
)
from truthgpt_serve.http.asgi import relative_path
from truthgpt_serve.http.caller import Bounds, Caller
from truthgpt_serve.http.connection import Connection
from truthgpt_serve.http.front import Handler, RoutedFront
from truthgpt_serve.http.json_body import encode_json
from truthgpt_serve.http.routes import refuse
from truthgpt_serve.server.infer.routes import PATH as INFER
from truthgpt_serve.server.infer.routes import InferRoute, OverBackend
from truthgpt_serve.server.openai_backend import Kind, OpenAIBackend

MODELS = "/v1/models"
DEFAULT_NEW_TOKENS = 128
"""Limit of an answer for which `inputs` has no `max_new_tokens`."""

_ERRORS: dict[int, type[TruthGPTError]] = {
    404: ModelNotFoundError,
    413: TooLargeError,
    429: OverloadedError,
    503: UnavailableError,
}


def create_backend(app: Any, name: str, tasks: tuple[str, ...]) -> OpenAIBackend:
    """Returns what answers the contract's inputs.

    Args:
        app: vLLM's application, called on the event loop that it runs on.
        name: The model name.
        tasks: What the engine can do, in vLLM's words.
    """
    kinds: dict[str, Kind] = {"generate": "completion", "embed": "embedding"}
    return OpenAIBackend(
        LocalTransport(app, name),
        next((kind for task, kind in kinds.items() if task in tasks), None),
        with_usage=False,
        default_max_tokens=DEFAULT_NEW_TOKENS,
        unsupported=f"{INFER} answers for models that generate or embed; this one can "
        f"{', '.join(tasks)}: use vLLM's own routes, such as /pooling",
    )


class LocalTransport:
    """Sends requests of `OpenAIBackend` to an application in the same process."""

    def __init__(self, app: Any, name: str) -> None:
        self._app = app
        self._name = name

    @asynccontextmanager
    async def send(
        self, path: str, payload: dict[str, Any], caller: Caller
    ) -> AsyncGenerator[LocalRequest, None]:
        """Sends a request under the name that the caller gave, or the model's."""
        payload["model"] = caller.model or self._name
        headers = trace_headers(list(caller.headers))
        request = LocalRequest(self._app, path, payload, caller.request_id, headers=headers)
        async with request:
            status = await request.status()
            if status != 200:
                raise _error(status, json.loads(await request.read()))
            yield request

    def event_error(self, event: bytes) -> TruthGPTError:
        """Returns the error that an event of a stream means."""
        value = json.loads(event)
        return _error(_status_of(value), value)

    def unreadable(self, why: str) -> TruthGPTError:
        """Returns the error for an answer that is not as OpenAI's are."""
        return ServerError(f"the engine answered what cannot be read ({why})")


class Cards:
    """vLLM's own entries of the model and its adapters.

    Args:
        app: vLLM's application.
        name: The model name.
        acceleration: The backend.
        capabilities: What the model can do; empty where it generates no text.
        failed_adapters: Why each adapter that is not served is not, by name.
    """

    def __init__(
        self,
        app: Any,
        name: str,
        acceleration: Mapping[str, Any],
        capabilities: Mapping[str, Any],
        failed_adapters: Mapping[str, str],
    ) -> None:
        self._app = app
        self._name = name
        self._acceleration = acceleration
        self._capabilities = capabilities
        self._failed_adapters = failed_adapters

    async def find(self, model: str) -> dict[str, Any]:
        """Returns vLLM's own entry of a model or adapter, with the backend.

        Raises:
            UnavailableError: It is an adapter that could not be loaded.
            ModelNotFoundError: vLLM has none of this name.
        """
        if model in self._failed_adapters:
            raise failed_adapter(model, self._failed_adapters[model])
        async with LocalRequest(self._app, MODELS, {}, uuid.uuid4().hex, method="GET") as request:
            status, answer = await request.status(), json.loads(await request.read())
        if status != 200:
            raise _error(status, answer)
        for entry in answer["data"]:
            if entry["id"] == model:
                found = {**entry, "acceleration": self._acceleration}
                if self._capabilities:
                    found["capabilities"] = self._capabilities
                if self._failed_adapters and model == self._name:
                    found["failed_adapters"] = dict(self._failed_adapters)
                return found
        raise not_here(model, self._name)


class Dispatcher(RoutedFront):
    """Answers the product's own routes and sends everything else straight to vLLM.

    vLLM's own start-up and shut-down belong to the engine, so the server's end here.

    Args:
        app: What of vLLM's application a client reaches.
        backend: Answers the contract's inputs.
        cards: The entries of models.
        names: The model's names that clients send: its own, then its aliases.
        bounds: What one request of the contract may take.
    """

    def __init__(
        self, app: Any, backend: OpenAIBackend, cards: Cards, names: Sequence[str], bounds: Bounds
    ) -> None:
        super().__init__(f"the model {names[0]!r}")
        self._app = app
        self._cards = cards
        self._names = names
        self._infer = InferRoute(OverBackend(backend, "VllmModel"), self._own_name, bounds)

    async def serve(self, scope: Any, receive: Any, send: Any) -> None:
        """Answers one request."""
        path = relative_path(scope)
        own = path == INFER or (path.startswith(f"{MODELS}/") and path != f"{MODELS}/")
        await (super().serve if own else self._app)(scope, receive, send)

    def find(self, connection: Connection) -> Handler:
        """Returns the handler of a request of ours."""
        method, path = connection.scope["method"], connection.path
        is_infer = path == INFER
        if method not in (("POST",) if is_infer else ("GET", "HEAD")):
            raise refuse(method, path, self._names[0])
        return self._infer if is_infer else partial(self._card, path.removeprefix(f"{MODELS}/"))

    async def _card(self, model: str, connection: Connection) -> None:
        await connection.reply(encode_json(await self._cards.find(model)))

    def _own_name(self, model: str) -> str:
        """Returns the model's own name for its aliases; vLLM knows those of adapters."""
        return self._names[0] if model in self._names else model


def _error(status: int, answer: Any) -> TruthGPTError:
    """Turns an answer of vLLM's into the error it means."""
    fields = answer.get("error") if isinstance(answer, Mapping) else None
    fields = fields if isinstance(fields, Mapping) else {"message": str(answer)}
    kind = _ERRORS.get(status, ServerError if status >= 500 else RequestError)
    param = fields.get("param")
    return kind(str(fields.get("message")), param=param if isinstance(param, str) else None)


def _status_of(event: Mapping[str, Any]) -> int:
    """Returns the status that the error in a stream would have had before it."""
    error = event["error"]
    dead = isinstance(error, Mapping) and error.get("code") == UnavailableError.default_code
    return UnavailableError.status if dead else ServerError.status
