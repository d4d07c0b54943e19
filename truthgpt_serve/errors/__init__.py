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

from truthgpt_serve.errors.base import TruthGPTError
from truthgpt_serve.errors.configuration import ConfigError, Fault, RegistryError, bad_setting
from truthgpt_serve.errors.limits import OverloadedError, RateLimitError
from truthgpt_serve.errors.passed import PassedError
from truthgpt_serve.errors.requests import (
    AuthenticationError,
    CodingError,
    ContextLengthError,
    ExpiredFileError,
    MethodError,
    MissingFileError,
    ModelNotFoundError,
    OriginError,
    PermissionDeniedError,
    QuarantinedError,
    RequestError,
    RouteNotFoundError,
    SlowRequestError,
    TooLargeError,
    UnsupportedError,
    not_here,
)
from truthgpt_serve.errors.servers import (
    DeadlineError,
    ServerError,
    UnavailableError,
    UpstreamError,
    failed_adapter,
    late_answer,
)

__all__ = [
    "AuthenticationError",
    "CodingError",
    "ConfigError",
    "ContextLengthError",
    "DeadlineError",
    "ExpiredFileError",
    "Fault",
    "MethodError",
    "MissingFileError",
    "ModelNotFoundError",
    "OriginError",
    "OverloadedError",
    "PassedError",
    "PermissionDeniedError",
    "QuarantinedError",
    "RateLimitError",
    "RegistryError",
    "RequestError",
    "RouteNotFoundError",
    "ServerError",
    "SlowRequestError",
    "TooLargeError",
    "TruthGPTError",
    "UnavailableError",
    "UnsupportedError",
    "UpstreamError",
    "bad_setting",
    "failed_adapter",
    "late_answer",
    "not_here",
]
