"""vLLM's answers to paths and methods that it does not have, in OpenAI's envelope.

vLLM puts its own errors into the envelope and leaves these to FastAPI. Knows FastAPI and no engine.
"""

from __future__ import annotations

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from truthgpt_serve.errors import MethodError, PassedError, RouteNotFoundError, TruthGPTError
from truthgpt_serve.protocol import encode_json

_NO_ROUTE: dict[int, type[TruthGPTError]] = {404: RouteNotFoundError, 405: MethodError}


def answer_in_envelope(app: FastAPI, name: str) -> None:
    """Has an application answer what its routes do not take in the envelope.

    Args:
        app: The application; it must not have served a request yet.
        name: The model name, for messages.
    """

    async def answer(request: Request, raised: Exception) -> Response:
        if not isinstance(raised, HTTPException):
            raise raised
        error: TruthGPTError = PassedError(raised.status_code, str(raised.detail))
        if kind := _NO_ROUTE.get(raised.status_code):
            path = request.url.path.removeprefix(request.scope.get("root_path", ""))
            error = kind(f"The model {name!r} has no {request.method} {path}")
        body = encode_json(error.to_envelope())
        # The headers name the methods that the path has.
        return Response(body, raised.status_code, raised.headers, "application/json")

    app.add_exception_handler(HTTPException, answer)
    # vLLM has it built already, without this handler; the first request builds it again.
    app.middleware_stack = None
