"""The product's own routes, `POST /v1/infer` and `GET /v1/models/{id}`, beside vLLM's application.

Answers by calling vLLM's OpenAI routes in the same process, so that sampling fields, limits and
adapters mean the same on both. Knows nothing of Ray and imports no engine.
"""

from __future__ import annotations

import contextlib
import json
import logging
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any

from deployments.vllm.application.local_request import LocalRequest
from truthgpt_serve.errors import (
    MethodError,
    ModelNotFoundError,
    OverloadedError,
    RequestError,
    ServerError,
    TooLargeError,
    TruthGPTError,
    UnavailableError,
    UnsupportedError,
    failed_adapter,
)
from truthgpt_serve.http.connection import ClientGoneError, Connection
from truthgpt_serve.http.json_body import encode_json, parse_object
from truthgpt_serve.http.sse import EventReader
from truthgpt_serve.server.infer.codec import InferExchange

logger = logging.getLogger(__name__)

ROUTE = "/v1/infer"
MODELS = "/v1/models"
DEFAULT_NEW_TOKENS = 128
"""Limit of an answer for which `inputs` has no `max_new_tokens`."""

_ERRORS: dict[int, type[TruthGPTError]] = {
    404: ModelNotFoundError,
    413: TooLargeError,
    429: OverloadedError,
    503: UnavailableError,
}


class GenericRoutes:
    """Text and embeddings from vLLM's application, in the contract's inputs and outputs.

    Args:
        app: vLLM's application.
        name: The model name.
        tasks: What the engine can do, in vLLM's words.
        acceleration: What computes, for the model's card.
        failed_adapters: Why each adapter that is not served is not, by name.
    """

    def __init__(
        self,
        app: Any,
        name: str,
        tasks: tuple[str, ...],
        acceleration: Mapping[str, Any] | None = None,
        failed_adapters: Mapping[str, str] | None = None,
    ) -> None:
        self._app = app
        self._name = name
        self._tasks = tasks
        self._acceleration = acceleration or {}
        self._failed_adapters = failed_adapters or {}

    async def infer(
        self, inputs: Mapping[str, Any], *, model: str | None = None, request_id: str | None = None
    ) -> dict[str, Any]:
        """Answers one request.

        Args:
            inputs: `text`; for a generating model also `max_new_tokens` and vLLM's sampling fields.
            model: Model name, or an adapter's.
            request_id: For the engine's log.

        Returns:
            `{"text", "finish_reason"}`, or `{"embedding"}`.

        Raises:
            RequestError: vLLM refuses the inputs.
            ServerError: vLLM failed.
        """
        path, payload = self._request(inputs, model)
        async with LocalRequest(self._app, path, payload, request_id or _new_id()) as request:
            status, answer = await request.status(), await request.read()
        if status != 200:
            raise _error(status, answer)
        if "embed" in self._tasks:
            return {"embedding": answer["data"][0]["embedding"]}
        choice = answer["choices"][0]
        return {"text": choice["text"], "finish_reason": choice["finish_reason"]}

    async def stream(
        self, inputs: Mapping[str, Any], *, model: str | None = None, request_id: str | None = None
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Yields `{"text": delta}`, the last one with `finish_reason`; arguments as for `infer`.

        A model that does not generate yields its whole output at once.
        """
        if "generate" not in self._tasks:
            yield await self.infer(inputs, model=model, request_id=request_id)
            return
        path, payload = self._request(inputs, model)
        payload["stream"] = True
        async with LocalRequest(self._app, path, payload, request_id or _new_id()) as request:
            status = await request.status()
            if status != 200:
                raise _error(status, await request.read())
            async for event in _events(request.chunks()):
                if "error" in event:
                    raise _error(_status_of(event), event)
                for choice in event["choices"]:
                    delta = {"text": choice["text"]}
                    if choice.get("finish_reason") is not None:
                        delta["finish_reason"] = choice["finish_reason"]
                    yield delta

    async def card(self, model: str) -> dict[str, Any]:
        """Returns vLLM's own entry of a model or adapter, with what computes.

        Raises:
            UnavailableError: It is an adapter that could not be loaded.
            ModelNotFoundError: vLLM has none of this name.
        """
        if model in self._failed_adapters:
            raise failed_adapter(model, self._failed_adapters[model])
        async with LocalRequest(self._app, MODELS, {}, _new_id(), method="GET") as request:
            status, answer = await request.status(), await request.read()
        if status != 200:
            raise _error(status, answer)
        for entry in answer["data"]:
            if entry["id"] == model:
                found = {**entry, "acceleration": self._acceleration}
                if self._failed_adapters and model == self._name:
                    found["failed_adapters"] = dict(self._failed_adapters)
                return found
        raise ModelNotFoundError(
            f"the model {model!r} does not exist here; this is {self._name!r}", param="model"
        )

    def _request(self, inputs: Mapping[str, Any], model: str | None) -> tuple[str, dict[str, Any]]:
        fields = dict(inputs)
        text = fields.pop("text", None)
        if not isinstance(text, str):
            raise RequestError("inputs.text is required and must be a string", param="inputs.text")
        model = model or self._name
        if "generate" in self._tasks:
            limit = fields.pop("max_new_tokens", None)
            fields.setdefault("max_tokens", DEFAULT_NEW_TOKENS if limit is None else limit)
            return "/v1/completions", {**fields, "model": model, "prompt": text, "stream": False}
        if "embed" not in self._tasks:
            raise UnsupportedError(
                f"{ROUTE} answers for models that generate or embed; this one can "
                f"{', '.join(self._tasks)}: use vLLM's own routes, such as /pooling"
            )
        return "/v1/embeddings", {**fields, "model": model, "input": text}


class Dispatcher:
    """Sends the product's own routes to `GenericRoutes` and everything else straight to vLLM.

    vLLM's own start-up and shut-down belong to the engine, so lifespan events end here.

    Args:
        app: What of vLLM's application a client reaches.
        routes: The generic route's answers.
        names: The model's names that clients send: its own, then its aliases.
        max_request_s: Longest time for one request on the generic route.
        max_body_bytes: Largest body on the generic route.
    """

    def __init__(
        self,
        app: Any,
        routes: GenericRoutes,
        names: Sequence[str],
        *,
        max_request_s: float,
        max_body_bytes: int,
    ) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._routes = routes
        self._names = names
        self._max_request_s = max_request_s

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serves one connection."""
        kind = scope["type"]
        if kind == "http" and (scope["path"].endswith(ROUTE) or f"{MODELS}/" in scope["path"]):
            path = scope["path"].removeprefix(scope.get("root_path", ""))
            if path == ROUTE:
                return await self._answer(self._infer, Connection(scope, receive, send))
            if path.startswith(f"{MODELS}/") and path != f"{MODELS}/":
                card = partial(self._card, path.removeprefix(f"{MODELS}/"))
                return await self._answer(card, Connection(scope, receive, send))
        elif kind == "lifespan":
            return await _lifespan(receive, send)
        await self._app(scope, receive, send)

    async def _card(self, model: str, connection: Connection) -> None:
        _check_method(connection, MODELS, ("GET", "HEAD"))
        await connection.reply(encode_json(await self._routes.card(model)))

    async def _infer(self, connection: Connection) -> None:
        _check_method(connection, ROUTE, ("POST",))
        body = parse_object(await connection.read(self._max_body_bytes, self._max_request_s))
        exchange = InferExchange(body, "VllmModel")
        if exchange.model in self._names:
            exchange.name_model(self._names[0])
        async with connection.guard(self._max_request_s) as guard:
            if exchange.stream:
                await self._send_events(connection, exchange)
                return
            outputs = await self._routes.infer(
                exchange.prepare(), model=exchange.model, request_id=connection.request_id
            )
            guard.release()
            await connection.reply(exchange.answer(outputs))

    async def _answer(
        self, handle: Callable[[Connection], Awaitable[None]], connection: Connection
    ) -> None:
        try:
            await handle(connection)
        except ClientGoneError:
            logger.debug("request %s: the client left", connection.request_id)
        except TruthGPTError as error:
            await connection.fail(error)
        except Exception:
            logger.exception("request %s failed", connection.request_id)
            message = f"the model failed; its log has request {connection.request_id}"
            await connection.fail(ServerError(message))

    async def _send_events(self, connection: Connection, exchange: InferExchange) -> None:
        deltas = self._routes.stream(
            exchange.prepare(), model=exchange.model, request_id=connection.request_id
        )
        async with contextlib.aclosing(deltas):
            async for delta in deltas:
                await connection.emit(exchange.piece(delta))
        await connection.emit(exchange.finish())
        await connection.end_events()


def _check_method(connection: Connection, route: str, allow: tuple[str, ...]) -> None:
    if (method := connection.scope["method"]) not in allow:
        raise MethodError(f"{route} takes {allow[0]}, not {method}", allow=allow)


def _new_id() -> str:
    return uuid.uuid4().hex


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


async def _events(chunks: AsyncIterator[bytes]) -> AsyncIterator[dict[str, Any]]:
    """Yields the JSON of server-sent events until `[DONE]`."""
    reader = EventReader()
    async for chunk in chunks:
        for data in reader.feed(chunk):
            if data == b"[DONE]":
                return
            yield json.loads(data)


async def _lifespan(receive: Any, send: Any) -> None:
    while True:
        event = (await receive())["type"]
        await send({"type": f"{event}.complete"})
        if event == "lifespan.shutdown":
            return
