"""Who sends a request, and what it may take: for applications that pass it on."""

from __future__ import annotations

from dataclasses import dataclass

from truthgpt_serve.http.asgi import Headers


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: what goes along with the inputs.

    Attributes:
        request_id: For the logs.
        model: The model's or an adapter's name; None for the model.
        headers: The client's, names in lower case.
    """

    request_id: str
    model: str | None = None
    headers: Headers | tuple[()] = ()


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one request may take.

    Attributes:
        max_request_s: Seconds until its answer is whole.
        max_body_bytes: Size of its body.
    """

    max_request_s: float
    max_body_bytes: int
