"""Errors of a client's request: it has to change, or may not be served."""

from __future__ import annotations

from truthgpt_serve.errors.base import TruthGPTError


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


def not_here(model: str, own: str) -> ModelNotFoundError:
    """Returns the error of a request that came to the model `own` and names another."""
    return ModelNotFoundError(
        f"the model {model[:200]!r} does not exist here; this is {own!r}", param="model"
    )
