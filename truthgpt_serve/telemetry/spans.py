"""Spans of requests by OpenTelemetry's SDK; imported where an endpoint is configured.

The SDK's batches go out from a thread of their own, and its queue is bounded: what a receiver does
not take in time is dropped.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Sequence
from typing import Any

from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Span, SpanKind, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from truthgpt_serve.telemetry.record import RequestRecord
from truthgpt_serve.telemetry.tracing import GRPC, Receiver

logger = logging.getLogger(__name__)

SERVICE = "truthgpt-serve"
HEADERS = (b"traceparent", b"tracestate")
CLOSE_S = 3.0
_SDK_LOGGERS = ("opentelemetry.exporter", "opentelemetry.sdk")
_SERVER_ERROR = 500
_NO_PARENT = Context()
"""Not the process's own context, in which an engine may have a span."""


class SpanTracer:
    """Makes a span of each request of this process.

    Args:
        component: `router` or `replica`, the first word of the spans' names.
        receiver: Where they go.
    """

    def __init__(self, component: str, receiver: Receiver) -> None:
        self._component = component
        self._context = TraceContextTextMapPropagator()
        for name in _SDK_LOGGERS:  # they write for each batch; `Told` writes once
            logging.getLogger(name).setLevel(logging.CRITICAL)
        name = os.environ.get("OTEL_SERVICE_NAME") or SERVICE
        # Not the process's own provider, which an engine may set.
        self._provider = TracerProvider(
            resource=Resource.create({"service.name": name}), shutdown_on_exit=False
        )
        exporter = Told(make_exporter(receiver), receiver.endpoint)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("truthgpt_serve")

    def begin(self, record: RequestRecord) -> None:
        """Begins the span of a request, and tells those behind of it by its headers."""
        kept, given = record.scope["headers"], {}
        if any(key in HEADERS for key, _ in kept):
            given = {
                key.decode("latin-1"): value.decode("latin-1")
                for key, value in kept
                if key in HEADERS
            }
            kept = [header for header in kept if header[0] not in HEADERS]
        span = record.span = self._tracer.start_span(
            f"{self._component} {record.method}",
            context=self._context.extract(given) if given else _NO_PARENT,
            kind=SpanKind.SERVER,
            start_time=record.began_ns,
        )
        record.trace_id = f"{span.get_span_context().trace_id:032x}"
        told: dict[str, str] = {}
        self._context.inject(told, set_span_in_context(span, _NO_PARENT))
        record.scope["headers"] = [*kept, *((key.encode(), told[key].encode()) for key in told)]

    def end(self, record: RequestRecord) -> None:
        """Ends the span of a request; never waits."""
        span: Span | None = record.span
        if span is None:
            return
        if span.is_recording():
            span.set_attributes(_attributes(record))
            if record.status >= _SERVER_ERROR or (
                record.outcome == "error" and record.status < 400
            ):
                span.set_status(StatusCode.ERROR)
        span.end(record.began_ns + int(1e9 * (time.perf_counter() - record.began_s)))

    def close(self) -> None:
        """Sends the last spans; blocks for `CLOSE_S` seconds at most."""
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(CLOSE_S)


def make_exporter(receiver: Receiver) -> SpanExporter:
    """Returns OpenTelemetry's own exporter of a protocol."""
    if receiver.protocol == GRPC:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

        return OTLPSpanExporter(endpoint=receiver.endpoint)
    from opentelemetry.exporter.otlp.proto.http import trace_exporter

    return trace_exporter.OTLPSpanExporter(endpoint=receiver.endpoint)


class Told(SpanExporter):
    """An exporter that writes once that its receiver is away, and once that it is back.

    Args:
        exporter: Sends the spans.
        endpoint: Where to, for messages.
    """

    def __init__(self, exporter: SpanExporter, endpoint: str) -> None:
        self._exporter = exporter
        self._endpoint = endpoint
        self._is_away = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Sends spans, in the SDK's thread."""
        result = SpanExportResult.FAILURE
        with contextlib.suppress(Exception):
            result = self._exporter.export(spans)
        is_away = result is not SpanExportResult.SUCCESS
        if is_away and not self._is_away:
            logger.warning("%s takes no spans: they are dropped until it does", self._endpoint)
        elif self._is_away and not is_away:
            logger.warning("%s takes spans again", self._endpoint)
        self._is_away = is_away
        return result

    def shutdown(self) -> None:
        """Ends the exporter."""
        self._exporter.shutdown()


def _attributes(record: RequestRecord) -> dict[str, Any]:
    usage = record.usage
    found: dict[str, Any] = {
        "http.request.method": record.method,
        "url.path": record.path,
        "http.response.status_code": record.status,
        "gen_ai.request.model": record.model,
        "gen_ai.usage.input_tokens": usage.prompt_tokens,
        "gen_ai.usage.output_tokens": usage.completion_tokens,
        "truthgpt.usage.cached_tokens": usage.cached_tokens,
        "truthgpt.request_id": record.request_id,
        "truthgpt.key_name": record.key_name or "",
        "truthgpt.outcome": record.outcome,
        "truthgpt.queue_s": record.queued_s,
    }
    if record.first_s is not None:
        found["truthgpt.first_byte_s"] = record.first_s - record.began_s
    return {key: value for key, value in found.items() if value != ""}
