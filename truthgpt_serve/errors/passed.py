"""Errors of an engine or another server, passed on."""

from __future__ import annotations

from truthgpt_serve.errors.base import TruthGPTError
from truthgpt_serve.errors.limits import OverloadedError
from truthgpt_serve.errors.requests import RequestError, SlowRequestError, TooLargeError
from truthgpt_serve.errors.servers import (
    DeadlineError,
    ServerError,
    UnavailableError,
    UpstreamError,
)


class PassedError(TruthGPTError):
    """An error of an engine or another server, in the API's form and with its own status.

    Args:
        status: The status.
        message: What a client sees.
        param: The request field at fault, or None.
        code: OpenAI's error code; None for the status's own.
        type: OpenAI's error type; None for the status's own.
    """

    type = "api_error"

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        type: str | None = None,
    ) -> None:
        super().__init__(message, param=param, code=code)
        self.status = status
        early = (SlowRequestError, TooLargeError, OverloadedError)
        kinds = (*early, UpstreamError, UnavailableError, DeadlineError)
        kind = next((kind for kind in kinds if kind.status == status), None)
        if kind is not None:
            self.type, self.code = type or kind.type, self.code or kind.default_code
            self.default_retry_after_s = kind.default_retry_after_s
        elif type is not None:
            self.type = type
        elif status < ServerError.status:
            self.type = RequestError.type
