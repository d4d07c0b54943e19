"""When requests are traced."""

from __future__ import annotations

import subprocess
import sys

import pytest

from truthgpt_serve.telemetry.tracing import GRPC, HTTP, Receiver, find_receiver, open_tracer

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
TRACES = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"


@pytest.mark.parametrize(
    ("environ", "receiver"),
    [
        ({}, None),
        ({ENDPOINT: " "}, None),
        ({ENDPOINT: "http://a:4318/"}, Receiver("http://a:4318/v1/traces", HTTP)),
        ({ENDPOINT: "http://a:1", TRACES: "http://b:2/x"}, Receiver("http://b:2/x", HTTP)),
        (
            {ENDPOINT: "http://a:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            Receiver("http://a:4317", GRPC),
        ),
        ({ENDPOINT: "http://a:4318", "OTEL_SDK_DISABLED": "true"}, None),
        ({ENDPOINT: "http://a:4318", "OTEL_TRACES_EXPORTER": "none"}, None),
    ],
)
def test_the_environment_decides(environ: dict[str, str], receiver: Receiver | None) -> None:
    assert find_receiver(environ) == receiver


def test_an_unknown_protocol_is_said(caplog: pytest.LogCaptureFixture) -> None:
    environ = {ENDPOINT: "http://a:4318", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"}
    assert open_tracer("router", environ) is None
    assert "OTEL_EXPORTER_OTLP_PROTOCOL is 'http/json'" in caplog.text


def test_without_an_endpoint_nothing_is_imported() -> None:
    program = (
        "import sys; from truthgpt_serve.telemetry.tracing import open_tracer\n"
        "assert open_tracer('replica', {}) is None\n"
        "import truthgpt_serve.telemetry.watched\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"
