"""Spans of requests, as a receiver of OTLP gets them."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import pytest

from tests.support.otlp_receiver import attributes_of, otlp_grpc_receiver, otlp_receiver
from truthgpt_serve.access.identity import SCOPE_KEY, Identity
from truthgpt_serve.http.asgi import Message, Receive, Scope, Send, header
from truthgpt_serve.telemetry.access_log import AccessLog
from truthgpt_serve.telemetry.tracing import Tracer, open_tracer
from truthgpt_serve.telemetry.watched import Watched
from truthgpt_serve.usage.counted import add_tokens

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
SILENT = logging.getLogger("tests.silent")
"""Has no handlers, so that no lines are written of requests."""


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")


def tracer_to(endpoint: str, component: str) -> Tracer:
    tracer = open_tracer(component, {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint})
    assert tracer is not None
    return tracer


async def receive() -> Message:
    return {"type": "http.disconnect"}


async def send(message: Message) -> None:
    pass


def scope_of(flags: str = "01") -> Scope:
    parent = f"00-{TRACE}-{PARENT}-{flags}".encode()
    headers = [(b"traceparent", parent), (b"tracestate", b"a=b"), (b"x-request-id", b"i")]
    return {"type": "http", "method": "POST", "path": "/v1/x", "headers": headers}


async def test_the_clients_trace_goes_through_router_and_replica() -> None:
    seen: list[Scope] = []

    async def model(scope: Scope, receive: Receive, send: Send) -> None:
        scope[SCOPE_KEY] = Identity("team")
        seen.append(scope)
        add_tokens(5, 6, 4)
        await send({"type": "http.response.start", "status": 503, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    with otlp_receiver() as receiver:
        tracers = [tracer_to(receiver.endpoint, name) for name in ("replica", "router")]
        log = AccessLog(SILENT)
        replica = Watched(model, log, model="story", tracer=tracers[0])

        async def relay(scope: Scope, receive: Receive, send: Send) -> None:
            await replica({**scope_of(), "headers": scope["headers"]}, receive, send)

        await Watched(relay, log, tracer=tracers[1])(scope_of(), receive, send)
        spans = {span.name: span for span in receiver.wait_for(2)}
        for tracer in tracers:
            tracer.close()
    router, replica_span = spans["router POST"], spans["replica POST"]
    assert {span.trace_id.hex() for span in spans.values()} == {TRACE}
    assert router.parent_span_id.hex() == PARENT
    assert replica_span.parent_span_id == router.span_id
    inner = (header(seen[0]["headers"], b"traceparent") or b"").decode()
    assert inner == f"00-{TRACE}-{replica_span.span_id.hex()}-01"
    assert header(seen[0]["headers"], b"tracestate") == b"a=b"
    assert replica_span.start_time_unix_nano >= router.start_time_unix_nano
    assert replica_span.end_time_unix_nano <= router.end_time_unix_nano + 10**6
    found = attributes_of(replica_span)
    assert found["gen_ai.request.model"] == "story"
    assert found["truthgpt.key_name"] == "team"
    assert found["http.response.status_code"] == 503
    assert replica_span.status.code == 2
    assert (found["gen_ai.usage.input_tokens"], found["gen_ai.usage.output_tokens"]) == (5, 6)
    assert (found["truthgpt.outcome"], found["truthgpt.request_id"]) == ("error", "i")
    assert found["truthgpt.queue_s"] >= 0


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def test_spans_go_out_over_grpc() -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.grpc", reason="needs the extra tracing")
    with otlp_grpc_receiver() as receiver:
        environ = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint,
            "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
        }
        tracer = open_tracer("replica", environ)
        assert tracer is not None
        await Watched(answer, AccessLog(SILENT), model="m", tracer=tracer)(
            scope_of(), receive, send
        )
        [span] = receiver.wait_for(1)
        tracer.close()
    assert (span.name, span.trace_id.hex()) == ("replica POST", TRACE)
    assert attributes_of(span)["gen_ai.request.model"] == "m"


async def test_a_trace_that_is_not_sampled_has_no_spans() -> None:
    with otlp_receiver() as receiver:
        tracer = tracer_to(receiver.endpoint, "replica")
        app = Watched(answer, AccessLog(SILENT), tracer=tracer)
        await app(scope_of("00"), receive, send)
        await app(scope_of("01"), receive, send)
        receiver.wait_for(1)
        tracer.close()
    assert len(receiver.spans) == 1


@pytest.mark.long("waits for limits of time")
async def test_a_receiver_that_is_away_costs_a_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with otlp_receiver() as receiver:
        port = int(receiver.endpoint.rpartition(":")[2])
    tracer = tracer_to(receiver.endpoint, "replica")
    app = Watched(answer, AccessLog(SILENT), tracer=tracer)
    deadline = time.monotonic() + 20
    longest_s = 0.0
    while "takes no spans" not in caplog.text and time.monotonic() < deadline:
        began_s = time.monotonic()
        for _ in range(3000):  # more than the queue holds
            await app(scope_of(), receive, send)
        longest_s = max(longest_s, time.monotonic() - began_s)
        time.sleep(0.1)
    with otlp_receiver(port) as back:
        await app(scope_of(), receive, send)
        back.wait_for(1)
        tracer.close()
    assert back.spans
    texts = [record.getMessage() for record in caplog.records]
    assert len([text for text in texts if "takes no spans" in text]) == 1
    assert len(texts) <= 2
