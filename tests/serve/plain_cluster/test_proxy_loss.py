"""What clients see when HAProxy, or the process that manages it, is killed."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter

import httpx
import pytest

from benchmarks.local_cluster import LocalCluster, model_application
from tests.serve.bare_cluster import install
from truthgpt_serve.cluster.processes import Process, find_run

ECHO = {"model": {"family": "echo"}, "hardware": {"gpus": 0, "cpus": 0.1}}
BACK_S = 120
"""It takes 1 s; a loaded machine takes many times that."""
STEADY_S = 5
CONNECTION_LOST = 0


@pytest.fixture(scope="module")
def cluster(bare: LocalCluster) -> LocalCluster:
    install(bare, [model_application("echo", ECHO)])
    return bare


HAPROXY, MANAGER = "haproxy.adapted.cfg", "ray::HAProxyManager"


def find(cluster: LocalCluster, words: str) -> list[Process]:
    """Returns the processes of the cluster whose command line has these words."""
    return [process for process in find_run(cluster.run_id) if words in process.command]


def kill(cluster: LocalCluster, words: str) -> None:
    """Kills them."""
    for process in find(cluster, words):
        os.kill(process.pid, signal.SIGKILL)


def ask(url: str, path: str) -> httpx.Response | None:
    """Returns the answer, or None where there was no connection."""
    body = {"model": "echo", "prompt": "a", "max_tokens": 1}
    try:
        return httpx.post(f"{url}{path}/v1/completions", json=body, timeout=30)
    except httpx.TransportError:
        return None


def test_a_killed_haproxy_comes_back_and_never_says_that_there_is_no_such_model(
    cluster: LocalCluster,
) -> None:
    kill(cluster, HAPROXY)
    killed_s = last_bad_s = time.monotonic()
    seen: Counter[int] = Counter()
    while time.monotonic() < last_bad_s + STEADY_S:
        for path in ("", "/models/echo"):
            answer = ask(cluster.url, path)
            status = CONNECTION_LOST if answer is None else answer.status_code
            seen[status] += 1
            if status != 200:
                last_bad_s = time.monotonic()
            if answer is not None and status != 200:
                assert status == 503, answer.text
                assert answer.headers["retry-after"]
                assert answer.json()["error"]["type"] == "service_unavailable"
        assert last_bad_s < killed_s + BACK_S
        time.sleep(0.05)
    print(f"away for {last_bad_s - killed_s:.1f} s, {dict(seen)}")


def test_a_killed_haproxy_is_started_again_by_its_manager(cluster: LocalCluster) -> None:
    """Not by Ray Serve, which would notice later and start a manager first."""
    managers = {process.pid for process in find(cluster, MANAGER)}
    before = {process.pid for process in find(cluster, HAPROXY)}
    kill(cluster, HAPROXY)
    deadline = time.monotonic() + BACK_S
    while not (new := [each for each in find(cluster, HAPROXY) if each.pid not in before]):
        assert time.monotonic() < deadline, "no HAProxy came in the place of the killed one"
        time.sleep(0.05)
    assert {process.parent for process in new} <= managers


def test_a_killed_manager_is_replaced_and_no_request_notices(cluster: LocalCluster) -> None:
    (manager,) = find(cluster, MANAGER)
    before = {process.pid for process in find(cluster, HAPROXY)}
    kill(cluster, MANAGER)
    deadline = time.monotonic() + BACK_S
    changed_s: float | None = None
    while changed_s is None or time.monotonic() < changed_s + STEADY_S:
        for path in ("", "/models/echo"):
            answer = ask(cluster.url, path)
            assert answer is not None
            assert answer.status_code == 200, answer.text
        new = [each for each in find(cluster, HAPROXY) if each.pid not in before]
        if new and changed_s is None:  # with the routes that the new manager was told
            changed_s = time.monotonic()
        assert time.monotonic() < deadline, f"no manager has replaced process {manager.pid}"
        time.sleep(0.05)
