"""vLLM's application in the whole service: who leaves, what is routed, errors, logs, restarts."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import Any

import anthropic
import openai
import pytest

from tests.serve.two_engines.conftest import (
    MAX_MODEL_LEN,
    MAX_ONGOING,
    VllmService,
    wait_until,
)
from tests.serve.two_engines.small_models import BRIEF_S
from tests.support.cli_service import run_program

STOP_S = 20  # far more than a decode step, and far less than the whole answer takes
RECOVERY_S = 300
SETTLE_S = 15
LONG = MAX_MODEL_LEN - 200
USER = [{"role": "user", "content": "Tell me a story."}]
COMPLETION: dict[str, Any] = {"prompt": "Once", "max_tokens": LONG, "ignore_eos": True}
CHAT: dict[str, Any] = {"messages": USER, "temperature": 0, "max_tokens": LONG, "ignore_eos": True}
INFER = {"text": "Once", "max_new_tokens": LONG, "ignore_eos": True}
REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "completion": ("/v1/completions", COMPLETION),
    "completion of 3 prompts": ("/v1/completions", {**COMPLETION, "prompt": ["a", "b", "c"]}),
    "completion n=3": ("/v1/completions", {**COMPLETION, "n": 3, "temperature": 1}),
    "completion stream": ("/v1/completions", {**COMPLETION, "stream": True}),
    "chat": ("/v1/chat/completions", CHAT),
    "chat n=3": ("/v1/chat/completions", {**CHAT, "n": 3, "temperature": 1}),
    "chat stream": ("/v1/chat/completions", {**CHAT, "stream": True}),
    "response": (
        "/v1/responses",
        {"input": "Tell me a story.", "max_output_tokens": LONG, "temperature": 0},
    ),
    "message": ("/v1/messages", {"messages": USER, "temperature": 0, "max_tokens": LONG}),
    "message stream": (
        "/v1/messages",
        {"messages": USER, "temperature": 0, "max_tokens": LONG, "stream": True},
    ),
    "infer": ("/v1/infer", {"inputs": INFER}),
    "infer stream": ("/v1/infer", {"inputs": INFER, "stream": True}),
}

pytestmark = pytest.mark.timeout(420)


@pytest.mark.parametrize("prefix", ["", "/models/tiny"], ids=["router", "model"])
@pytest.mark.parametrize("kind", REQUESTS)
def test_the_engine_stops_when_the_client_leaves(
    service: VllmService, kind: str, prefix: str
) -> None:
    path, body = REQUESTS[kind]
    wait_until(lambda: service.num_running() == 0, STOP_S)
    before = service.metric("generation_tokens_total")
    with service.request(f"{prefix}{path}", {"model": "tiny", **body}):
        wait_until(lambda: service.num_running() > 0, STOP_S, "the request runs")
    wait_until(lambda: service.num_running() == 0, STOP_S, "the engine is idle")
    assert service.metric("generation_tokens_total") - before < LONG


def test_clients_that_leave_make_room_only_when_their_work_has_ended(service: VllmService) -> None:
    most = 0.0
    for _ in range(8):
        with ExitStack() as stack:
            for _ in range(3):
                stack.enter_context(
                    service.request("/v1/chat/completions", {"model": "tiny", **CHAT})
                )
            wait_until(lambda: service.num_running() > 0, STOP_S)
            most = max(most, service.num_running())
        most = max(most, service.num_running())
    assert most <= MAX_ONGOING
    wait_until(lambda: service.num_running() == 0, STOP_S)
    answer = service.http.post(
        "/v1/chat/completions", json={"model": "tiny", **CHAT, "max_tokens": 2}
    )
    assert answer.status_code == 200


@pytest.mark.parametrize("kind", ["chat", "infer", "infer stream"])
def test_a_request_that_leaves_the_queue_is_never_computed(service: VllmService, kind: str) -> None:
    path, body = REQUESTS[kind]
    wait_until(lambda: service.num_running() == 0, STOP_S)
    before = service.metric("prompt_tokens_total")
    running = {"model": "tiny", **COMPLETION, "prompt": [7, 8], "stream": True}
    with ExitStack() as stack:
        for _ in range(MAX_ONGOING):
            client = stack.enter_context(service.request("/v1/completions", running))
            assert client.recv(1)  # it has a place, and its answer begins
        with service.request(path, {"model": "tiny", **body}) as waiting:
            waiting.settimeout(1)
            with pytest.raises(TimeoutError):
                waiting.recv(1)
            assert service.num_queued() == 1
        wait_until(lambda: service.num_queued() == 0, STOP_S, "it has left the queue")
        assert service.num_running() == MAX_ONGOING
    wait_until(lambda: service.num_running() == 0, STOP_S)
    assert service.metric("prompt_tokens_total") == before + 2 * MAX_ONGOING


@pytest.mark.parametrize("prefix", ["", "/models/brief"], ids=["router", "model"])
@pytest.mark.parametrize("kind", ["completion", "chat", "chat stream", "infer", "infer stream"])
def test_the_engine_stops_when_the_time_is_over(
    service: VllmService, kind: str, prefix: str
) -> None:
    path, body = REQUESTS[kind]
    answer = service.http.post(f"{prefix}{path}", json={"model": "brief", **body, **many(body)})
    wait_until(lambda: service.num_running("brief") == 0, STOP_S, "the engine is idle")
    if body.get("stream"):
        assert answer.status_code == 200
        last = answer.text.rstrip().rpartition("\n\n")[2]
        error = json.loads(last.removeprefix("data: "))["error"]
    else:
        assert answer.status_code == 504, answer.text
        error = answer.json()["error"]
    assert f"within {BRIEF_S:g} s" in error["message"]
    assert (error["type"], error["code"]) == ("timeout_error", "timeout")


def many(body: dict[str, Any]) -> dict[str, Any]:
    """Returns what makes a request take longer than its time on any machine."""
    fields = {"n": 8, "temperature": 1}
    return {"inputs": {**body["inputs"], **fields}} if "inputs" in body else fields


def test_many_that_leave_at_once_leave_a_free_engine(service: VllmService) -> None:
    def leave(index: int) -> None:
        path, body = list(REQUESTS.values())[index % len(REQUESTS)]
        with service.request(path, {"model": "tiny", **body}) as client:
            client.settimeout(0.05 * (index % 10))
            with suppress(TimeoutError, BlockingIOError):
                client.recv(1)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(leave, range(96)))
    wait_until(lambda: service.num_running() == 0, STOP_S)
    answer = service.http.post(
        "/v1/completions", json={"model": "tiny", **COMPLETION, "max_tokens": 2}
    )
    assert answer.status_code == 200


HIDDEN = [
    ("POST", "/scale_elastic_ep"),
    ("POST", "/is_scaling_elastic_ep"),
    ("GET", "/load"),
    ("GET", "/version"),
    ("GET", "/kv_event_sources"),
    ("GET", "/ping"),
    ("POST", "/ping"),
    ("POST", "/invocations"),
    ("POST", "/generative_scoring"),
    ("POST", "/inference/v1/generate"),
    ("POST", "/v1/chat/completions/render"),
    ("POST", "/v1/systemone"),
    ("POST", "/sleep"),
    ("POST", "/v1/load_lora_adapter"),
    ("GET", "/docs"),
    ("GET", "/openapi.json"),
    ("GET", "/redoc"),
    ("OPTIONS", "/scale_elastic_ep"),
    ("HEAD", "/version"),
    ("POST", "/scale_elastic_ep/"),
    ("POST", "//scale_elastic_ep"),
    ("POST", "/%73cale_elastic_ep"),
    ("POST", "/v1/../scale_elastic_ep"),
    ("POST", "/v1/completions/"),
    ("POST", "//v1/completions"),
    ("POST", "/v1//completions"),
    ("POST", "/V1/completions"),
    ("GET", "/metrics/"),
    ("POST", "/v1/realtime"),
]


PAGES = ("/docs", "/openapi.json")  # of the router, not of a model
NOT_OF_A_MODEL = ("/metrics/",)  # a model's page of metrics has this name too


@pytest.mark.parametrize(
    ("method", "path"),
    [(method, f"/models/tiny{path}") for method, path in HIDDEN if path not in NOT_OF_A_MODEL]
    + [(method, path) for method, path in HIDDEN if path not in PAGES],
)
def test_routes_that_are_not_listed_do_not_exist(
    service: VllmService, method: str, path: str
) -> None:
    status, body = service.send(method, path, {"model": "tiny", "prompt": "a"})
    assert status == 404, body
    if method != "HEAD":
        error = json.loads(body)["error"]
        assert (error["type"], error["code"]) == ("invalid_request_error", "not_found")


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "HEAD"])
def test_a_listed_route_takes_its_own_method_only(service: VllmService, method: str) -> None:
    status, body = service.send(method, "/models/tiny/v1/completions", {})
    assert status == 405, body


def test_listed_routes_answer(service: VllmService) -> None:
    for method, path in (("GET", "/health"), ("GET", "/metrics"), ("GET", "/v1/models")):
        for verb in (method, "HEAD"):
            status, _ = service.send(verb, f"/models/tiny{path}")
            assert status == 200, (verb, path)
    answer = service.http.post("/tokenize", json={"model": "tiny", "prompt": "Hello world"})
    assert answer.json()["count"] == 4
    unfit = service.http.post("/v1/embeddings", json={"model": "tiny", "input": "a"})
    assert (unfit.status_code, unfit.json()["error"]["code"]) == (400, "unsupported")


def test_a_websocket_is_refused(service: VllmService) -> None:
    upgrade = {
        "upgrade": "websocket",
        "connection": "upgrade",
        "sec-websocket-version": "13",
        "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    status, _ = service.send("GET", "/models/tiny/v1/realtime", headers=upgrade)
    assert status in (403, 404)


TOO_LONG = "a b " * MAX_MODEL_LEN
CONTEXT = f"maximum context length is {MAX_MODEL_LEN} tokens"
BAD: dict[str, tuple[str, dict[str, Any], str, str | None, str | None]] = {
    "completion too long": (
        "/v1/completions",
        {"prompt": TOO_LONG},
        CONTEXT,
        "input_tokens",
        "context_length_exceeded",
    ),
    "stream too long": (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": TOO_LONG}], "stream": True},
        CONTEXT,
        "input_tokens",
        "context_length_exceeded",
    ),
    "response too long": (
        "/v1/responses",
        {"input": TOO_LONG},
        CONTEXT,
        "input_tokens",
        "context_length_exceeded",
    ),
    "too many tokens wanted": (
        "/v1/completions",
        {"prompt": "a", "max_tokens": MAX_MODEL_LEN + 1},
        CONTEXT,
        "max_tokens",
        "context_length_exceeded",
    ),
    "too many response tokens": (
        "/v1/responses",
        {"input": "a", "max_output_tokens": MAX_MODEL_LEN + 1},
        CONTEXT,
        "max_output_tokens",
        "context_length_exceeded",
    ),
    "value": ("/v1/completions", {"prompt": "a", "temperature": -1}, "-1", "temperature", None),
    "type": ("/v1/responses", {"input": "a", "temperature": "x"}, "number", "temperature", None),
    "nested type": (
        "/v1/chat/completions",
        {"messages": USER, "stream_options": {"include_usage": "x"}, "stream": True},
        "boolean",
        "stream_options.include_usage",
        None,
    ),
    "message too long": (
        "/v1/messages",
        {"messages": [{"role": "user", "content": TOO_LONG}], "max_tokens": 5},
        CONTEXT,
        None,
        None,
    ),
    "message stream too long": (
        "/v1/messages",
        {"messages": [{"role": "user", "content": TOO_LONG}], "max_tokens": 5, "stream": True},
        CONTEXT,
        None,
        None,
    ),
    "message without limit": ("/v1/messages", {"messages": USER}, "max_tokens", None, None),
    "count without messages": ("/v1/messages/count_tokens", {}, "messages", None, None),
}


@pytest.mark.parametrize("prefix", ["", "/models/tiny"], ids=["router", "model"])
@pytest.mark.parametrize("kind", BAD)
def test_errors_have_the_form_of_their_api(service: VllmService, kind: str, prefix: str) -> None:
    path, body, text, param, code = BAD[kind]
    answer = service.http.post(prefix + path, json={"model": "tiny", **body})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert text in error["message"]
    assert "parameter=" not in error["message"]
    assert "{" not in error["message"]
    if path.startswith("/v1/messages"):
        kind = "invalid_request_error"
        assert answer.json() == {"type": "error", "error": {"type": kind, **message_of(error)}}
    else:
        expected = {"type": "invalid_request_error", "param": param, "code": code}
        assert error == {**message_of(error), **expected}


def message_of(error: dict[str, Any]) -> dict[str, str]:
    return {"message": error["message"]}


def test_clients_read_the_errors(service: VllmService) -> None:
    with openai.OpenAI(
        base_url=f"{service.cluster.url}/v1", api_key="none", max_retries=0, timeout=90
    ) as client:
        with pytest.raises(openai.BadRequestError) as caught:
            client.completions.create(model="tiny", prompt=TOO_LONG)
        assert (caught.value.type, caught.value.code) == (
            "invalid_request_error",
            "context_length_exceeded",
        )
        with pytest.raises(openai.NotFoundError) as missing:
            client.completions.create(model="nobody", prompt="a")
        assert missing.value.code == "model_not_found"
    with anthropic.Anthropic(
        base_url=service.cluster.url, api_key="none", max_retries=0, timeout=90
    ) as messages:
        ask: Any = messages.messages.create
        user = [{"role": "user", "content": TOO_LONG}]
        for stream in (False, True):
            with pytest.raises(anthropic.BadRequestError) as refused:
                ask(model="tiny", max_tokens=5, messages=user, stream=stream)
            body: Any = refused.value.body
            assert body["error"]["type"] == "invalid_request_error"
            assert CONTEXT in body["error"]["message"]
        with pytest.raises(anthropic.NotFoundError) as unknown:
            ask(model="nobody", max_tokens=5, messages=USER)
        body = unknown.value.body
        assert body["error"]["type"] == "not_found_error"


def test_the_command_line_talks_with_a_model(service: VllmService) -> None:
    env = {"TRUTHGPT_URL": service.cluster.url}
    fixed = {"temperature": 0, "max_tokens": 12}
    whole = service.http.post(
        "/v1/chat/completions", json={"model": "tiny", "messages": USER, **fixed}
    ).json()
    options = ["--temperature", "0", "--max-tokens", "12", "--stats"]
    done = run_program("chat", "tiny", *options, stdin=USER[0]["content"], env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.removesuffix("\n") == whole["choices"][0]["message"]["content"]
    assert "12 tokens" in done.stderr
    done = run_program("chat", "tinny", stdin="hi", env=env)
    assert done.returncode == 1
    assert "did you mean tiny?" in done.stderr


def test_serves_log_goes_on_when_the_engine_has_loaded(service: VllmService) -> None:
    assert "Started HTTP server" in service.serve_log()  # the last that Serve does before requests


def test_a_killed_controller_leaves_the_models_as_they_are(service: VllmService) -> None:
    before = {model: service.cluster.replica_pids(model) for model in ("tiny", "brief")}
    (controller,) = service.find_processes("ray::ServeController")
    controller.kill()
    controller.wait(RECOVERY_S)
    wait_until(lambda: is_back(service), RECOVERY_S, "a new controller knows the models")
    time.sleep(SETTLE_S)  # time in which it would replace a replica that it cannot take over
    assert is_back(service)
    assert {model: service.cluster.replica_pids(model) for model in before} == before
    answer = service.http.post(
        "/v1/completions", json={"model": "tiny", "prompt": "Hi", "max_tokens": 2}
    )
    assert answer.status_code == 200


def is_back(service: VllmService) -> bool:
    with suppress(OSError, KeyError):
        return set(service.cluster.statuses().values()) == {"RUNNING"}
    return False
