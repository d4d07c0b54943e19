"""vLLM's answers to paths and methods that it does not have, in the API's form.

vLLM puts its own errors into the envelope and leaves these to FastAPI. Knows FastAPI and no engine.
"""

from __future__ import annotations

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from truthgpt_serve.api_errors import error_body
from truthgpt_serve.errors import PassedError, TruthGPTError
from truthgpt_serve.protocol import encode_json
from truthgpt_serve.routes import find_routes, refuse
from truthgpt_serve.server.http import relative_path


def answer_in_envelope(app: FastAPI, name: str) -> None:
    """Has an application answer what its routes do not take in the envelope.

    Args:
        app: The application; it must not have served a request yet.
        name: The model name, for messages.
    """

    async def answer(request: Request, raised: Exception) -> Response:
        if not isinstance(raised, HTTPException):
            raise raised
        path = relative_path(request.scope)
        error: TruthGPTError = PassedError(raised.status_code, str(raised.detail))
        if raised.status_code == 404 or (raised.status_code == 405 and find_routes(path, "model")):
            error = refuse(request.method, path, name)
        body = encode_json(error_body(error, path))
        # The headers name the methods that the path has.
        return Response(body, error.status, raised.headers, "application/json")

    app.add_exception_handler(HTTPException, answer)
    # vLLM has it built already, without this handler; the first request builds it again.
    app.middleware_stack = None
