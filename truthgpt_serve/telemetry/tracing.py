"""Whether requests are traced, as OpenTelemetry's own environment variables say.

Without an endpoint nothing of OpenTelemetry is imported.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from truthgpt_serve.telemetry.record import RequestRecord

logger = logging.getLogger(__name__)

TRACES_ENDPOINT = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
HTTP, GRPC = "http/protobuf", "grpc"
_SPANS = "truthgpt_serve.telemetry.spans"


class Tracer(Protocol):
    """Makes a span of each request."""

    def begin(self, record: RequestRecord) -> None:
        """Begins the span of a request, and tells those behind of it by its headers."""

    def end(self, record: RequestRecord) -> None:
        """Ends the span of a request; never waits."""

    def close(self) -> None:
        """Sends the last spans; blocks for some seconds at most."""


@dataclass(frozen=True, slots=True)
class Receiver:
    """Where spans go.

    Attributes:
        endpoint: Its address, with the path of spans for HTTP.
        protocol: `HTTP` or `GRPC`.
    """

    endpoint: str
    protocol: str


def find_receiver(environ: Mapping[str, str] = os.environ) -> Receiver | None:
    """Returns where the environment says that spans go; None for nowhere."""
    off = environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    if off or environ.get("OTEL_TRACES_EXPORTER", "otlp") != "otlp":
        return None
    protocol = next((found for name in PROTOCOLS if (found := environ.get(name))), HTTP)
    if endpoint := environ.get(TRACES_ENDPOINT, "").strip():
        return Receiver(endpoint, protocol)
    endpoint = environ.get(ENDPOINT, "").strip()
    if not endpoint:
        return None
    if protocol == HTTP:
        endpoint = f"{endpoint.rstrip('/')}/v1/traces"
    return Receiver(endpoint, protocol)


def open_tracer(component: str, environ: Mapping[str, str] = os.environ) -> Tracer | None:
    """Returns what makes spans of requests; None where they are not traced.

    Args:
        component: Whose spans they are: `router` or `replica`.
        environ: The environment.
    """
    receiver = find_receiver(environ)
    if receiver is None:
        return None
    if receiver.protocol not in (HTTP, GRPC):
        logger.error(
            "requests are not traced: %s is %r; write %s or %s",
            PROTOCOLS[1],
            receiver.protocol,
            HTTP,
            GRPC,
        )
        return None
    try:
        spans = importlib.import_module(_SPANS)
    except ImportError as error:
        logger.error("requests are not traced: pip install 'truthgpt-serve[tracing]' (%s)", error)
        return None
    tracer: Tracer = spans.SpanTracer(component, receiver)
    return tracer
