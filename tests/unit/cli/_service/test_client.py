"""How commands find the service, and what a user reads when it does not answer or refuses."""

from __future__ import annotations

import json

import pytest

from tests.support.cli_service import (
    EVENTS,
    Answer,
    envelope,
    events,
    model_list,
    serve,
)
from truthgpt_serve.cli._service.address import Address
from truthgpt_serve.cli._service.client import ServiceClient
from truthgpt_serve.cli._service.failures import ServiceFault
from truthgpt_serve.cluster.ports import free_port

KEY = "sk-secret-of-a-test"


def fault(client: ServiceClient, path: str, **request: object) -> ServiceFault:
    with pytest.raises(ServiceFault) as raised:
        client.post(path, request) if request else client.get(path)
    assert "\n" not in raised.value.message
    assert raised.value.exit_code == 1
    return raised.value


def test_no_service_at_the_address() -> None:
    with ServiceClient(Address(f"http://127.0.0.1:{free_port()}", "")) as client:
        assert "start it with `make serve`" in fault(client, "/ready").message


def test_the_key_is_sent_and_never_shown() -> None:
    with serve({"/ready": Answer(envelope("no such key", "invalid_api_key"), 401)}) as service:
        with ServiceClient(Address(service.url, ""), KEY) as client:
            message = fault(client, "/ready").message
        with ServiceClient(Address(service.url, "")) as client:
            assert "set TRUTHGPT_API_KEY" in fault(client, "/ready").message
    assert service.requests[0].headers["authorization"] == f"Bearer {KEY}"
    assert "authorization" not in service.requests[1].headers
    assert message == "no such key: check TRUTHGPT_API_KEY"


def test_an_unknown_model_comes_with_the_nearest_names() -> None:
    missing = Answer(envelope("The model 'stroy' does not exist", "model_not_found", "model"), 404)
    answers = {"/v1/infer": missing, "/v1/models": model_list("echo", "shapes", "story")}
    with serve(answers) as service, ServiceClient(Address(service.url, "")) as client:
        found = fault(client, "/v1/infer", model="stroy")
    assert found.code == "model_not_found"
    assert "did you mean story?" in found.message
    assert "models: echo, shapes, story" in found.message


def test_what_the_service_says_is_shown() -> None:
    busy = Answer(envelope("the queue is\n full \x1b[31m", "overloaded"), 429)
    starting = Answer(envelope("The model 'a' is starting", "model_unavailable"), 503)
    with (
        serve({"/full": busy, "/starting": starting}) as service,
        ServiceClient(Address(service.url, "")) as client,
    ):
        assert fault(client, "/full").message == "the queue is full"
        assert "`truthgpt why a`" in fault(client, "/starting", model="a").message


@pytest.mark.parametrize(
    "answer",
    [
        Answer(b"<html>", content_type="text/html"),
        Answer(b"<html>", 502, "text/html"),
        Answer({"error": 5}, 500),
    ],
)
def test_another_program_at_the_address_is_told(answer: Answer) -> None:
    with (
        serve({"/ready": answer}) as service,
        ServiceClient(Address(service.url, "TRUTHGPT_URL")) as client,
    ):
        message = fault(client, "/ready").message
    assert "is that the address of the service? (from TRUTHGPT_URL)" in message


def test_a_stream_yields_events_and_ends_with_its_error() -> None:
    chunk = {"text": "a\u2028b\x85c"}
    raw = f"data: {json.dumps(chunk, ensure_ascii=False)}\r\n\r\n".encode()
    halves = [raw[:9], raw[9:], b": a comment\n\n", *events(envelope("it broke"), done=False)]
    with (
        serve({"/v1/x": Answer(pieces=halves, content_type=EVENTS)}) as service,
        ServiceClient(Address(service.url, "")) as client,
        client.stream("/v1/x", {"model": "a"}) as found,
    ):
        assert next(found) == chunk
        with pytest.raises(ServiceFault, match="it broke"):
            next(found)
    assert service.requests[0].body == {"model": "a", "stream": True}


def test_a_stream_that_is_none_is_told() -> None:
    with (
        serve({"/v1/x": Answer({"choices": []})}) as service,
        ServiceClient(Address(service.url, "")) as client,
        pytest.raises(ServiceFault, match="is not an event stream"),
        client.stream("/v1/x", {}),
    ):
        pass
