"""The same by HAProxy and by Ray's Python proxy: full queues and upgrades."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from benchmarks.local_cluster import LocalCluster, model_application, router_application
from tests.serve.whole_service.conftest import RAY_ENV, START_TIMEOUT_S

LIMIT_S = 120.0
CHAT: dict[str, Any] = {"model": "few", "messages": [{"role": "user", "content": "word " * 60}]}
WAYS = ("", "/models/few")
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
