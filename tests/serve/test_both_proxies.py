"""The same by HAProxy and by Ray's Python proxy: full queues, upgrades, a removed model."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from benchmarks.local_cluster import LocalCluster, model_application, router_application
from tests.serve.whole_service.conftest import RAY_ENV, START_TIMEOUT_S
from truthgpt_serve.http.sse import read_data

LIMIT_S = 120.0
CHAT: dict[str, Any] = {"model": "few", "messages": [{"role": "user", "content": "word " * 60}]}
WAYS = ("", "/models/few")
NOTICED_S, GONE_S, PROMPT_S = 20, 12, 10
"""How long a model that is removed may still answer; after which it is gone; a prompt answer."""
MODES = {"python": "0", "haproxy": "1"}


def applications(cluster: LocalCluster, *names: str) -> list[dict[str, Any]]:
    few = {
        "max_ongoing_requests": 4,
        "max_queued_requests": 2,
        "engine": {"token_interval_s": 0.1},
    }
    small = {"model": {"family": "echo"}, "hardware": {"cpus": 0.1, "gpus": 0}}
    models = [model_application(name, {**small, "serving": few}) for name in names]
    return [*models, router_application(cluster.port, num_replicas=1)]


@pytest.fixture(scope="module", params=MODES)
def cluster(request: pytest.FixtureRequest) -> Iterator[LocalCluster]:
    env = {"RAY_SERVE_ENABLE_HA_PROXY": MODES[request.param]}
    with LocalCluster(RAY_ENV, env=env) as cluster:
        cluster.deploy(applications(cluster, "few", "other"))
        cluster.wait_until_ready(timeout_s=START_TIMEOUT_S)
        yield cluster


def test_a_model_without_metrics_of_its_own_has_those_of_its_replicas(
    cluster: LocalCluster,
) -> None:
    for path in ("/metrics", "/metrics/"):
        answer = httpx.get(f"{cluster.url}/models/few{path}", timeout=LIMIT_S)
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        assert 'truthgpt_replica_up{replica="' in answer.text
        assert "truthgpt_replica_requests{" in answer.text
    answer = httpx.get(f"{cluster.url}/models/few/v1/models/metrics", timeout=LIMIT_S)
    assert answer.status_code == 404


@pytest.mark.parametrize("way", WAYS)
def test_a_full_queue_is_answered_in_the_form_of_the_api(cluster: LocalCluster, way: str) -> None:
    def ask(path: str) -> httpx.Response:
        body = {**CHAT, "max_tokens": 15}
        return httpx.post(f"{cluster.url}{way}{path}", json=body, timeout=LIMIT_S)

    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(ask, ["/v1/chat/completions"] * 16 + ["/v1/messages"] * 8))
    assert {answer.status_code for answer in answers} == {200, 429}
    for answer in answers:
        if answer.status_code == 429:
            assert answer.headers["content-type"] == "application/json"
            assert int(answer.headers["retry-after"]) >= 1
            error = answer.json()["error"]
            assert error["message"].startswith("The queue of model 'few' is full: ")
            is_messages = answer.request.url.path.endswith("/messages")
            kind = answer.json()["type"] if is_messages else error["code"]
            assert kind == ("error" if is_messages else "overloaded")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("method", ["POST", "GET"])
def test_a_body_with_an_upgrade_is_refused_at_once(
    cluster: LocalCluster, method: str, way: str
) -> None:
    body = json.dumps({**CHAT, "max_tokens": 1}).encode()
    head = (
        f"{method} {way}/v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\n"
        "upgrade: websocket\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", cluster.port), timeout=20) as client:
        client.sendall(head.encode() + body)
        answer = b""
        while b"}" not in answer and (piece := client.recv(65536)):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 400 "), answer
    assert b'"type":"invalid_request_error"' in answer.replace(b": ", b":"), answer


@dataclass
class Stream:
    """A long answer as it comes."""

    url: str
    body: dict[str, Any]
    events: list[bytes] = field(default_factory=list)
    error: Exception | None = None

    def run(self) -> None:
        data = b""
        try:
            with httpx.stream("POST", self.url, json=self.body, timeout=LIMIT_S) as answer:
                for piece in answer.iter_raw():
                    data += piece
                    self.events = list(read_data(data))
        except httpx.TransportError as error:
            self.error = error


def test_a_model_that_is_removed_ends_its_streams(cluster: LocalCluster) -> None:
    urls = [f"{cluster.url}{way}/v1/chat/completions" for way in WAYS]
    body = {**CHAT, "messages": [{"role": "user", "content": "word " * 150}], "max_tokens": 150}
    streams = [Stream(url, {**body, "stream": True}) for url in urls]
    threads = [threading.Thread(target=stream.run) for stream in streams]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + LIMIT_S
    while not all(stream.events for stream in streams):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    cluster.deploy(applications(cluster, "other"))
    began_s = time.monotonic()
    while any(thread.is_alive() for thread in threads) or time.monotonic() < began_s + GONE_S:
        for url in urls:
            check_refusal(url, began_s)
        time.sleep(0.3)
    assert [stream.error for stream in streams] == [None, None]
    assert [stream.events[-1] for stream in streams] == [b"[DONE]"] * 2
    for url in urls:
        assert httpx.post(url, json={**CHAT, "max_tokens": 1}, timeout=LIMIT_S).status_code == 404


def check_refusal(url: str, began_s: float) -> None:
    """Asks for a model that is being removed: at first it may still answer."""
    asked_s = time.monotonic()
    answer = httpx.post(url, json={**CHAT, "max_tokens": 1}, timeout=LIMIT_S)
    assert time.monotonic() - asked_s < PROMPT_S
    if answer.status_code == 200:
        assert asked_s < began_s + NOTICED_S
        return
    assert answer.status_code in (404, 429, 503), answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["error"]["message"]
    assert ("retry-after" in answer.headers) == (answer.status_code != 404)
