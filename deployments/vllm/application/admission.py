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
from truthgpt_serve.server.text_sizes import PAIR_ROUTES

MAX_VALUES_IN_JSON = 10_000_000
"""Most numbers of the vectors in an answer, which may have one for each token. On its way into JSON
each takes some 75 bytes, and 20 in it: a replica keeps 256 MiB of answers that are not yet read."""
MAX_VALUES = 40_000_000
"""The same in base64 or as bytes, of which each takes 5 or 6."""
MAX_VALUES_COMPARED = 1 << 27
"""The same where the vectors are only compared: 512 MiB."""


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
        max_values = MAX_VALUES_IN_JSON
        try:
            raw = await connection.read(self._max_body_bytes, self._max_request_s)
            if raw:
                body = await self._check(connection.path, raw)
                max_values = _max_values(connection.path, body)
        except ClientGoneError:
            return
        except TruthGPTError as error:
            await connection.fail(error)
            return
        with one_request(max_values):
            await self._app(scope, WholeBody(raw, receive), send)

    async def _check(self, path: str, raw: bytes) -> dict[str, Any]:
        body = parse_object(raw)
        self._limits.check(path, raw, body)
        check_kinds(path, body)
        if self._grammars is not None:
            for grammar in find_grammars(body):
                await self._grammars.check(grammar)
        return body


def _max_values(path: str, body: dict[str, Any]) -> int:
    """Returns how many numbers of vectors the answer to a request may hold."""
    if path in PAIR_ROUTES:
        return MAX_VALUES_COMPARED
    return MAX_VALUES_IN_JSON if body.get("encoding_format", "float") == "float" else MAX_VALUES


def _is_json(scope: Scope) -> bool:
    """Whether FastAPI would read the body as JSON: also where no type is given."""
    for name, value in scope["headers"]:
        if name == b"content-type":
            return b"json" in value.lower()
    return True
