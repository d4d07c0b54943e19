"""Reads the errors that come back through Serve's proxy: the model's, and the proxy's own."""

from __future__ import annotations

from truthgpt_serve.errors import TruthGPTError, UnavailableError, UpstreamError
from truthgpt_serve.http.foreign_errors import read_error

_PROXY_ERROR_PAGE = b"Internal Server Error"
"""Body of the page by which Serve's proxy replaces its own 502, 503 and 504 (status 500)."""


def translate_error(
    status: int, body: bytes, *, method: str, path: str, model: str, running: bool
) -> TruthGPTError | None:
    """Returns the error that an answer means, or None when it is to pass as it is.

    Args:
        status: The answer's status, 400 or above.
        body: Its whole body.
        method: The method that the client asked for.
        path: The path that the client asked for.
        model: The model name that the client asked for.
        running: Whether the model has a running replica.
    """
    if status == 500 and body == _PROXY_ERROR_PAGE:
        if running:
            return UpstreamError(f"A replica of the model {model!r} failed before it answered")
        return UnavailableError(f"The model {model!r} has no running replica", retry_after_s=5)
    return read_error(status, body, method=method, path=path, model=model)
