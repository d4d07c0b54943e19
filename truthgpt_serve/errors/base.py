"""The base of all errors: what an answer says of one."""

from __future__ import annotations

import math
from typing import Any

MAX_RETRY_AFTER_S = 2**31 - 1


class TruthGPTError(Exception):
    """Base of all errors of this package.

    Attributes:
        status: HTTP status code that a client sees.
        type: OpenAI's error type (`error.type` in the envelope).
        code: OpenAI's error code, or None.
        param: The request field at fault, or None.
        retry_after_s: Seconds for the `Retry-After` header, or None.
        default_retry_after_s: The same where an error does not say it.
        allow: HTTP methods for the `Allow` header.
        accepted_codings: Content codings for the `Accept-Encoding` header.
        challenge: The `WWW-Authenticate` header, or an empty text.
        headers: Further headers of the answer, names in lower case.
    """

    status: int = 500
    type: str = "server_error"
    default_code: str | None = None
    default_retry_after_s: int | None = None
    allow: tuple[str, ...] = ()
    accepted_codings: tuple[str, ...] = ()
    challenge: str = ""
    headers: tuple[tuple[bytes, bytes], ...] = ()

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = _text(message) or type(self).__name__
        self.param = _text(param)
        self.code = _text(code) if code is not None else self.default_code
        self.retry_after_s = _whole_seconds(retry_after_s)

    def to_envelope(self) -> dict[str, Any]:
        """Returns OpenAI's error envelope, `{"error": {"message", "type", "param", "code"}}`."""
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }


def _text(value: object) -> str | None:
    """Returns a value as text: a user's class may raise an error with anything in it."""
    return value if value is None or isinstance(value, str) else str(value)


def _whole_seconds(value: Any) -> int | None:
    """Returns seconds as a header has them, rounded up; None for what is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        return None
    return math.ceil(min(max(value, 0), MAX_RETRY_AFTER_S))
