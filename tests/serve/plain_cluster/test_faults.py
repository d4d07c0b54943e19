"""What clients see when replicas die, clients leave and models come and go; real Ray, HAProxy."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import httpx
import pytest

from benchmarks.disconnects import num_descriptors, ongoing_requests, send_requests
from benchmarks.local_cluster import LocalCluster, model_application, router_application
from tests.serve.bare_cluster import install
from truthgpt_serve.cluster.haproxy.direct import WAY_HEADER

ECHO: dict[str, Any] = {
    "model": {"family": "echo"},
    "hardware": {"gpus": 0, "cpus": 0.1},
    "serving": {"max_ongoing_requests": 128, "engine": {"token_interval_s": 0.02}},
}
BROKEN: dict[str, Any] = {"model": {"family": "custom", "import": "no_such_module"}}
WAYS: dict[str, dict[str, str]] = {"direct": {}, "router": {WAY_HEADER: "router"}}
NAMES = ["echo", "victim", "router"]
EXPORT_TIMEOUT_S = 240
RECOVERY_S = 240
FOLLOW_S = 8
"""Within this the router knows a new model, however busy the machine; usually it takes 2 s."""


MODELS = [model_application("echo", ECHO), model_application("victim", ECHO)]


@pytest.fixture(scope="module")
def cluster(bare: LocalCluster) -> LocalCluster:
    install(bare, MODELS)
    return bare


def deploy(cluster: LocalCluster, *more: dict[str, Any]) -> None:
    cluster.deploy([*MODELS, router_application(cluster.port), *more])


@pytest.fixture
def client(cluster: LocalCluster) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=cluster.url, timeout=90) as client:
        yield client


def complete(client: httpx.Client, model: str, **fields: Any) -> httpx.Response:
    body = {"model": model, "prompt": "a b", "max_tokens": 2, **fields}
    return client.post("/v1/completions", json=body)


def test_clients_that_leave_leave_nothing_behind(cluster: LocalCluster) -> None:
    url = f"{cluster.url}/v1/completions"
    body = {"model": "echo", "prompt": "one two", "max_tokens": 30, "stream": True}
    load = {"num_requests": 300, "num_clients": 32}
    asyncio.run(send_requests(url, body, **load, seed=1))  # connections and caches have their size
    before = num_descriptors(cluster, NAMES)
    outcome = asyncio.run(send_requests(url, body, **load))
    assert outcome.num_failed == 0
    assert outcome.num_left > 50
    deadline = time.monotonic() + EXPORT_TIMEOUT_S
    time.sleep(12)  # older values of the metrics, which are exported every 10 s, must not count
    while any((left := ongoing(cluster)).values()):
        assert time.monotonic() < deadline, f"ongoing requests: {left}"
        time.sleep(1)
    assert len(ongoing(cluster)) == 3  # one of each model, one router
    after = num_descriptors(cluster, NAMES)
    # Kept connections come and go; a leak would be about 150 for each hop.
    assert all(after[name] <= before[name] + 40 for name in NAMES), (before, after)


def ongoing(cluster: LocalCluster) -> dict[str, float]:
    """Returns the ongoing requests of each replica; the cluster had others before."""
    found = ongoing_requests(cluster.metrics_port).items()
    return {replica: number for replica, number in found if replica.partition("#")[0] in NAMES}


def _ask_victim(client: httpx.Client, way: str) -> httpx.Response | httpx.RemoteProtocolError:
    body = {"model": "victim", "prompt": "a b", "max_tokens": 500}
    try:
        return client.post("/v1/completions", json=body, headers=WAYS[way])
    except httpx.RemoteProtocolError as error:
        return error


@pytest.mark.parametrize("way", WAYS)
def test_a_killed_replica_ends_its_streams_and_is_replaced(
    cluster: LocalCluster, client: httpx.Client, way: str
) -> None:
    """The router tells the clients; HAProxy, on the direct way, can only close a stream."""
    (pid,) = cluster.replica_pids("victim")
    unary: list[httpx.Response | httpx.RemoteProtocolError] = []
    waiting = threading.Thread(target=lambda: unary.append(_ask_victim(client, way)))
    waiting.start()
    body = {"model": "victim", "prompt": "a", "max_tokens": 500, "stream": True}
    events = []
    closed = pytest.raises(httpx.RemoteProtocolError) if way == "direct" else nullcontext()
    with (
        closed,
        client.stream("POST", "/v1/completions", json=body, headers=WAYS[way]) as response,
    ):
        assert response.status_code == 200
        for line in response.iter_lines():
            if line:
                events.append(line)
            if len(events) == 5:
                os.kill(pid, signal.SIGKILL)
    assert "[DONE]" not in "".join(events)
    if way == "router":
        error = json.loads(events[-1].removeprefix("data: "))["error"]
        assert error["code"] == "upstream_error"
    waiting.join(90)
    if isinstance(unary[0], httpx.Response):
        assert unary[0].status_code in (502, 503)
        assert unary[0].json()["error"]["code"] in ("upstream_error", "model_unavailable")
    else:
        assert way == "direct"

    assert complete(client, "echo").status_code == 200  # the others did not notice
    deadline = time.monotonic() + RECOVERY_S
    while complete(client, "victim").status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert cluster.replica_pids("victim") != [pid]


def test_models_come_and_go_beside_the_others(cluster: LocalCluster, client: httpx.Client) -> None:
    """Also one that cannot start: it answers 503, and its message is in Serve's status."""
    newcomer, broken = model_application("new", ECHO), model_application("broken", BROKEN)
    deploy(cluster, newcomer, broken)
    deadline = time.monotonic() + RECOVERY_S
    while cluster.statuses().get("new") != "RUNNING":
        assert time.monotonic() < deadline, cluster.statuses()
        assert complete(client, "echo").status_code == 200
        time.sleep(0.2)
    running_s = time.monotonic()
    while complete(client, "new").status_code != 200:
        assert time.monotonic() < running_s + FOLLOW_S, "the router did not follow"
        time.sleep(0.05)

    while cluster.statuses()["broken"] != "DEPLOY_FAILED":
        assert time.monotonic() < deadline, cluster.statuses()
        time.sleep(0.2)
    refused = complete(client, "broken")
    assert refused.status_code == 503
    assert refused.headers["retry-after"]
    assert refused.json()["error"]["code"] == "model_unavailable"
    assert "no_such_module" in cluster.details()["applications"]["broken"]["message"]

    deploy(cluster)
    deleted_s = time.monotonic()
    while complete(client, "new").status_code != 404:
        assert time.monotonic() < deleted_s + RECOVERY_S
        time.sleep(0.2)
    assert complete(client, "echo").status_code == 200


def test_a_faulty_entry_leaves_the_former_replicas_to_answer(
    cluster: LocalCluster, client: httpx.Client
) -> None:
    """Under the model's name and its alias, on both ways; the state says that it failed."""
    first = {**ECHO, "serving": {**ECHO["serving"], "aliases": ["org/kept"]}}
    deploy(cluster, model_application("kept", first))
    deadline = time.monotonic() + RECOVERY_S
    while complete(client, "org/kept").status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    deploy(cluster, model_application("kept", BROKEN))
    while client.get("/v1/models/kept").json()["status"] != "DEPLOY_FAILED":
        assert time.monotonic() < deadline
        assert complete(client, "kept").status_code == 200
        assert complete(client, "org/kept").status_code == 200
    for model in ("kept", "org/kept"):
        for headers in WAYS.values():
            body = {"model": model, "prompt": "a b", "max_tokens": 2}
            assert client.post("/v1/completions", json=body, headers=headers).status_code == 200
    assert "no_such_module" in client.get("/v1/models/kept").json()["last_error"]
    deploy(cluster)
