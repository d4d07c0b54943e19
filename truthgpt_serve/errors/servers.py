"""Errors of the model and of what stands between it and the client."""

from __future__ import annotations

from truthgpt_serve.errors.base import TruthGPTError


class ServerError(TruthGPTError):
    """The model's code failed; the traceback is in the replica's log."""


class UpstreamError(ServerError):
    """A replica died, or the connection to it broke, before the answer was whole."""

    status = 502
    default_code = "upstream_error"


class UnavailableError(ServerError):
    """The model exists but cannot answer now."""

    status = 503
    type = "service_unavailable"
    default_code = "model_unavailable"
    default_retry_after_s = 5


class DeadlineError(ServerError):
    """The model did not answer within the configured time."""

    status = 504
    type = "timeout_error"
    default_code = "timeout"


def late_answer(model: str, limit_s: float) -> DeadlineError:
    """Returns the error of a request that took longer than it may."""
    return DeadlineError(f"The model {model!r} did not finish within {limit_s:g} s")


def failed_adapter(name: str, reason: str) -> UnavailableError:
    """Returns the error of a request for an adapter that its model could not load."""
    return UnavailableError(
        f"the adapter {name!r} could not be loaded, and its model serves without it: {reason}",
        param="model",
    )
