"""Checks a request's body before vLLM's application sees it: its size, its fields, its grammar."""

from __future__ import annotations

from typing import Any

from deployments.vllm.application.request_models import check_kinds
from deployments.vllm.sharing.round_robin import one_request
from truthgpt_serve.errors import TruthGPTError
from truthgpt_serve.grammar.fields import find_grammars
from truthgpt_serve.grammar.gate import GrammarGate
from truthgpt_serve.http.asgi import Receive, Scope, Send, WholeBody
from truthgpt_serve.http.connection import ClientGoneError, Connection
from truthgpt_serve.http.json_body import parse_object
from truthgpt_serve.server.text_limits import TextLimits


class AdmittedRequests:
    """An application that only requests within the limits reach.

    Args:
        app: The application; it bounds bodies that are no JSON itself.
        limits: What a request may ask for.
        grammars: Compiles a request's grammar beforehand; None where no request can have one.
        max_body_bytes: Largest body; a larger one is answered 413.
        max_request_s: How long a body may take to arrive.
    """

    def __init__(
        self,
        app: Any,
        limits: TextLimits,
        grammars: GrammarGate | None,
        *,
        max_body_bytes: int,
        max_request_s: float,
    ) -> None:
        self._app = app
        self._limits = limits
        self._grammars = grammars
        self._max_body_bytes = max_body_bytes
        self._max_request_s = max_request_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one connection."""
        if scope["type"] != "http" or scope["method"] != "POST" or not _is_json(scope):
            await self._app(scope, receive, send)
            return
        connection = Connection(scope, receive, send)
        try:
            raw = await connection.read(self._max_body_bytes, self._max_request_s)
            if raw:
                await self._check(connection.path, raw)
        except ClientGoneError:
            return
        except TruthGPTError as error:
            await connection.fail(error)
            return
        with one_request():
            await self._app(scope, WholeBody(raw, receive), send)

    async def _check(self, path: str, raw: bytes) -> None:
        body = parse_object(raw)
        self._limits.check(path, raw, body)
        check_kinds(path, body)
        if self._grammars is not None:
            for grammar in find_grammars(body):
                await self._grammars.check(grammar)


def _is_json(scope: Scope) -> bool:
    """Whether FastAPI would read the body as JSON: also where no type is given."""
    for name, value in scope["headers"]:
        if name == b"content-type":
            return b"json" in value.lower()
    return True
