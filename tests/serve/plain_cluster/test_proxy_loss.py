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
from truthgpt_serve.cluster.processes import find_run

ECHO = {"model": {"family": "echo"}, "hardware": {"gpus": 0, "cpus": 0.1}}
BACK_S = 120
"""It takes about 6 s; a loaded machine takes many times that."""
STEADY_S = 5
CONNECTION_LOST = 0


@pytest.fixture(scope="module")
def cluster(bare: LocalCluster) -> LocalCluster:
    install(bare, [model_application("echo", ECHO)])
    return bare


def processes(cluster: LocalCluster, words: str) -> list[int]:
    """Returns those of the cluster whose command line has these words."""
    return [process.pid for process in find_run(cluster.run_id) if words in process.command]


def ask(url: str, path: str) -> httpx.Response | None:
    """Returns the answer, or None where there was no connection."""
    body = {"model": "echo", "prompt": "a", "max_tokens": 1}
    try:
        return httpx.post(f"{url}{path}/v1/completions", json=body, timeout=30)
    except httpx.TransportError:
        return None


@pytest.mark.parametrize("words", ["haproxy.adapted.cfg", "ray::HAProxyManager"])
def test_a_killed_proxy_comes_back_and_never_says_that_there_is_no_such_model(
    cluster: LocalCluster, words: str
) -> None:
    for pid in processes(cluster, words):
        os.kill(pid, signal.SIGKILL)
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
    print(f"{words}: away for {last_bad_s - killed_s:.1f} s, {dict(seen)}")
