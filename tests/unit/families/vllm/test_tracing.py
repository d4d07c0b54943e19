"""vLLM's spans go where the service's do."""

from __future__ import annotations

import pytest

from deployments.vllm.tracing import trace_endpoint, trace_headers


@pytest.mark.parametrize(
    ("engine", "environ", "endpoint", "protocol"),
    [
        ({}, {}, None, None),
        (
            {},
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:4318"},
            "http://a:4318/v1/traces",
            "http/protobuf",
        ),
        (
            {"otlp_traces_endpoint": "http://b:1"},
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:4318"},
            "http://b:1",
            None,
        ),
    ],
)
def test_where(
    engine: dict[str, str], environ: dict[str, str], endpoint: str | None, protocol: str | None
) -> None:
    assert trace_endpoint(engine, environ) == endpoint
    assert environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") == protocol


def test_headers() -> None:
    given = [(b"traceparent", b"00-1-2-01"), (b"cookie", b"x"), (b"tracestate", b"a=b")]
    assert trace_headers(given) == [given[0], given[2]]
