"""Checks, at a model's own address, what the router checks at the service's: method and `model`.

A request that comes past the router is refused in the same words, whatever application answers it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from truthgpt_serve.access.gate import hidden_model
from truthgpt_serve.access.identity import Identity, identity_of
from truthgpt_serve.errors import RequestError, TruthGPTError, not_here
from truthgpt_serve.http.asgi import (
    READS,
    Message,
    Receive,
    Scope,
    Send,
    WholeBody,
    body_of,
    header,
    relative_path,
)
from truthgpt_serve.http.connection import refuse_websocket
from truthgpt_serve.http.open_inference import MODELS_PREFIX, model_of_path
from truthgpt_serve.http.routes import CARDS_PREFIX, find_error, find_routes
from truthgpt_serve.router.bodies.request_body import (
    BODY_METHODS,
    ClientLeftError,
    RequestBody,
    read_name,
    take,
)
from truthgpt_serve.router.open_inference import model_of


class NamedRequests:
    """An application that gets only requests for its model.

    Routes that an application has beside those of the service pass unread: they need no `model`. A
    key that may use an adapter or an alias alone has neither those nor the other names.

    Args:
        app: The application; something around it answers the errors that this raises.
        names: The model's name, its aliases and its adapters.
    """

    def __init__(self, app: Any, names: Sequence[str]) -> None:
        self._app = app
        self._name = names[0]
        self._names = frozenset(names)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one ASGI connection.

        Raises:
            TruthGPTError: The request is refused.
        """
        if scope["type"] == "websocket" and not self._may_use(identity_of(scope), self._name):
            await refuse_websocket(scope, receive, send, hidden_model(self._name))
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        method, path = scope["method"], relative_path(scope)
        routes = find_routes(path, "service")
        identity = identity_of(scope)
        if not routes:
            self._check_key(identity, self._name)
            await self._app(scope, receive, send)
            return
        if not any(method in route.allow for route in routes):
            error = find_error(method, path, "service")
            if error is not None:
                raise error
        if method in READS and path.startswith(CARDS_PREFIX):
            self._check(path.removeprefix(CARDS_PREFIX), identity)
        if path.startswith(MODELS_PREFIX):
            self._check_key(identity, model_of_path(path) or self._name)
        if method not in BODY_METHODS or model_of(method, path) is not None:
            await self._app(scope, receive, send)
            return
        await self._serve_named(scope, receive, send)

    async def _serve_named(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves a request whose body has to name the model."""
        body = _begin(receive)
        is_here = not body.more
        try:
            if not is_here:
                take(await receive(), body)
            name = await read_name(body, header(scope["headers"], b"content-type") or b"")
            self._check(name, identity_of(scope))
        except ClientLeftError:
            return
        if is_here:
            del body  # the model works for long
            await self._app(scope, receive, send)
        else:
            await self._pass_on(scope, body, send)

    def _check(self, model: str, identity: Identity | None) -> None:
        if model not in self._names:
            raise not_here(model, self._name)
        self._check_key(identity, model)

    def _check_key(self, identity: Identity | None, name: str) -> None:
        if not self._may_use(identity, name):
            raise hidden_model(name)

    def _may_use(self, identity: Identity | None, name: str) -> bool:
        return identity is None or identity.may_use(name, self._name)

    async def _pass_on(self, scope: Scope, body: RequestBody, send: Send) -> None:
        if not body.more:
            pieces = body.pieces
            whole = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            await self._app(scope, WholeBody(whole, body.receive), send)
            return
        rest = _Rest(body, send)
        try:
            await self._app(scope, rest.receive, rest.send)
        finally:
            if rest.error is not None:
                raise rest.error


def _begin(receive: Receive) -> RequestBody:
    """Returns a body of which nothing has been read, or which is here as a whole."""
    whole = body_of(receive)
    if whole is None:
        return RequestBody([], 0, True, receive)
    return RequestBody([whole], len(whole), False, receive)


class _Rest:
    """A body of which the rest is still to come, and to be looked at.

    Attributes:
        error: What is wrong with the rest.
    """

    def __init__(self, body: RequestBody, send: Send) -> None:
        self._body = body
        self._send = send
        self.error: TruthGPTError | None = None

    async def receive(self) -> Message:
        """Returns the next piece; an application learns no more of a body that is refused."""
        body = self._body
        if body.pieces:
            return {"type": "http.request", "body": body.pieces.pop(0), "more_body": True}
        message = await body.receive()
        if message["type"] == "http.request":
            try:
                body.watch(message.get("body", b""))
            except RequestError as error:
                self.error = error
                return {"type": "http.disconnect"}
        return message

    async def send(self, message: Message) -> None:
        """Sends on what is no answer to half a body."""
        if self.error is None:
            await self._send(message)
