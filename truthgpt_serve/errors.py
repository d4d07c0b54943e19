"""Every error that the product raises on purpose, each with its HTTP status and OpenAI type.

A server turns `to_envelope()` into a response.

    TruthGPTError
    ├── ConfigError              invalid YAML or arguments: faults with place, value and fix
    ├── RegistryError            a family that is unknown or registered twice
    ├── RequestError             400  the client's request cannot be served as it is
    │   ├── UnsupportedError     400  a field or a route that this model does not have
    │   ├── ContextLengthError   400  a text has more tokens than the model takes
    │   ├── AuthenticationError  401  no API key, or one that does not count
    │   ├── OriginError          403
    │   ├── PermissionDeniedError  403  the API key may not do this
    │   ├── ModelNotFoundError   404
    │   ├── RouteNotFoundError   404
    │   ├── MissingFileError     404
    │   ├── MethodError          405
    │   ├── SlowRequestError     408
    │   ├── ExpiredFileError     410
    │   ├── TooLargeError        413
    │   ├── CodingError          415
    │   └── QuarantinedError     422  the model's process died twice while it served this request
    ├── OverloadedError          429  every queue is full
    ├── PassedError              its own: an application's error, put into the envelope
    └── ServerError              500  the model's code failed
        ├── UpstreamError        502  a replica died or answered something that is not HTTP
        ├── UnavailableError     503  the model is starting, or failed
        └── DeadlineError        504  the model did not answer in time
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


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
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code if code is not None else self.default_code
        self.retry_after_s = retry_after_s

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


@dataclass(frozen=True, slots=True)
class Fault:
    """One mistake in a configuration.

    Attributes:
        place: File and dotted path, such as `models/x.yaml: serving.autoscaling.min_replicas`.
        message: What is wrong, with the value that was found.
        fix: What to write instead, or an empty string.
    """

    place: str
    message: str
    fix: str = ""

    def __str__(self) -> str:
        text = f"{self.place}: {self.message}"
        return f"{text} ({self.fix})" if self.fix else text


class ConfigError(TruthGPTError):
    """A configuration that cannot be used; `faults` holds every mistake that was found."""

    status = 400
    type = "invalid_request_error"

    def __init__(self, faults: list[Fault]) -> None:
        super().__init__("\n".join(str(fault) for fault in faults))
        self.faults = faults


def bad_setting(path: str, message: str, fix: str = "") -> ConfigError:
    """Returns the error for one setting, found wrong while a model loads: its dotted path first."""
    return ConfigError([Fault(path, message, fix)])


class RegistryError(TruthGPTError):
    """A family name that is unknown, or that two classes claim."""

    status = 400
    type = "invalid_request_error"


class RequestError(TruthGPTError):
    """The request is malformed, or asks for what the model cannot do."""

    status = 400
    type = "invalid_request_error"


class UnsupportedError(RequestError):
    """The model has no such route, or cannot honor a field of the request."""

    default_code = "unsupported"


class ContextLengthError(RequestError):
    """A text has more tokens than the model takes; worded as OpenAI words it.

    Clients look for "maximum context length" and for the code, and shorten the text by themselves.

    Args:
        max_tokens: What the model takes.
        num_tokens: What the request has.
        param: The request field.
        advice: What to do instead.
    """

    default_code = "context_length_exceeded"

    def __init__(
        self,
        max_tokens: int,
        num_tokens: int,
        *,
        param: str | None = None,
        advice: str = "Please reduce the length of the prompt.",
    ) -> None:
        super().__init__(
            f"This model's maximum context length is {max_tokens} tokens. However, you requested "
            f"{num_tokens} tokens. {advice}",
            param=param,
        )


class AuthenticationError(RequestError):
    """The request carries no API key, or one that does not count; worded without the key."""

    status = 401
    default_code = "invalid_api_key"
    challenge = "Bearer"


class OriginError(RequestError):
    """A browser asks for a page whose origin the configuration does not list."""

    status = 403
    default_code = "origin_not_allowed"


class PermissionDeniedError(RequestError):
    """The API key counts, and may not do this."""

    status = 403
    default_code = "insufficient_permissions"


class ModelNotFoundError(RequestError):
    """No application and no adapter has the model name of the request."""

    status = 404
    default_code = "model_not_found"


class RouteNotFoundError(RequestError):
    """The path names nothing that this server has."""

    status = 404
    default_code = "not_found"


class MissingFileError(RequestError):
    """No file has this id, or it had to make room for newer ones."""

    status = 404
    default_code = "file_not_found"


class ExpiredFileError(RequestError):
    """The file was kept for its time and is gone."""

    status = 410
    default_code = "file_expired"


class MethodError(RequestError):
    """The path exists, but not for this HTTP method.

    Args:
        message: What a client sees.
        allow: The methods that the path takes; empty only where another's answer brings the header.
    """

    status = 405
    default_code = "method_not_allowed"

    def __init__(self, message: str, *, allow: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.allow = allow


class SlowRequestError(RequestError):
    """The request's body did not arrive in time."""

    status = 408
    default_code = "request_timeout"


class TooLargeError(RequestError):
    """The body is larger than the configured limit."""

    status = 413
    default_code = "request_too_large"


class CodingError(RequestError):
    """The body is compressed in a way that is not supported.

    Args:
        message: What a client sees.
        accepted: The content codings that are.
    """

    status = 415
    default_code = "unsupported_content_encoding"

    def __init__(self, message: str, *, accepted: tuple[str, ...]) -> None:
        super().__init__(message)
        self.accepted_codings = accepted


class QuarantinedError(RequestError):
    """Processes died while they served exactly this request: it is refused for a while.

    A status that clients do not repeat by themselves.
    """

    status = 422
    default_code = "request_quarantined"


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


def not_here(model: str, own: str) -> ModelNotFoundError:
    """Returns the error of a request that came to the model `own` and names another."""
    return ModelNotFoundError(
        f"the model {model[:200]!r} does not exist here; this is {own!r}", param="model"
    )


def failed_adapter(name: str, reason: str) -> UnavailableError:
    """Returns the error of a request for an adapter that its model could not load."""
    return UnavailableError(
        f"the adapter {name!r} could not be loaded, and its model serves without it: {reason}",
        param="model",
    )
