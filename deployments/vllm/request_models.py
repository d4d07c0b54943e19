"""Answers 400 where vLLM's own reading of a request stumbles over a field of another type.

Its request models look into fields before their types are checked: `structured_outputs: 5` ends in
an `AttributeError`, which vLLM answers with 500.
"""

from __future__ import annotations

import traceback

from fastapi import FastAPI, Request, Response

from truthgpt_serve.api_errors import error_body
from truthgpt_serve.errors import RequestError
from truthgpt_serve.protocol import encode_json
from truthgpt_serve.server.http import relative_path

_KINDS = (AttributeError, TypeError, KeyError, IndexError, OverflowError)
_MODELS = ("/vllm/entrypoints/", "protocol.py")


def refuse_misread_fields(app: FastAPI) -> None:
    """Has an application answer 400 to what its request models cannot read.

    Args:
        app: vLLM's application; it must not have served a request yet.
    """

    async def answer(request: Request, raised: Exception) -> Response:
        if not _is_of_request_models(raised):
            raise raised
        path = relative_path(request.scope)
        error = RequestError(
            f"a field of the request has a value of another type than {path} takes: {raised}"
        )
        body = encode_json(error_body(error, path))
        return Response(body, error.status, media_type="application/json")

    for kind in _KINDS:
        app.add_exception_handler(kind, answer)
    app.middleware_stack = None  # the first request builds it again


def _is_of_request_models(error: BaseException) -> bool:
    """Whether an exception came up in the code of a request model, and in nothing that it calls."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return False
    folder, file = _MODELS
    return folder in frames[-1].filename and frames[-1].filename.endswith(file)
