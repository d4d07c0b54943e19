"""Errors of too many requests: of a full queue, and of a key that used what it may."""

from __future__ import annotations

from collections.abc import Sequence

from truthgpt_serve.errors.base import TruthGPTError


class OverloadedError(TruthGPTError):
    """A queue is full (`queue_full.py`); the client should come back after `retry_after_s`."""

    status = 429
    type = "rate_limit_error"
    default_code = "overloaded"
    default_retry_after_s = 1


class RateLimitError(TruthGPTError):
    """A key has sent as much as it may.

    Args:
        reason: Which limit it is, for metrics.
        headers: Of the answer: what the limit is, and what is left of it.
    """

    status = 429
    type = "rate_limit_error"
    default_code = "rate_limit_exceeded"
    default_retry_after_s = 1

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        retry_after_s: int | None = None,
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.reason = reason
        self.headers = tuple(headers)
