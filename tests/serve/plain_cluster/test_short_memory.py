"""Memory that runs short: Ray ends none of the processes that have little of it."""

from __future__ import annotations

import time
from pathlib import Path

import httpx
import pytest

from benchmarks.local_cluster import LocalCluster, model_application
from tests.serve.bare_cluster import bare_cluster, install

pytestmark = pytest.mark.timeout(900)
WATCH_S = 10
SHORT = {"RAY_memory_usage_threshold": "0.01"}
"""Of the machine's memory, more than which is always in use."""


def test_models_go_on_where_memory_is_short(tmp_path: Path) -> None:
    with bare_cluster(tmp_path, SHORT) as cluster:
        echo = {"model": {"family": "echo"}, "hardware": {"cpus": 0.1}}
        install(cluster, [model_application("echo", echo)], timeout_s=120)
        deadline = time.monotonic() + WATCH_S
        while time.monotonic() < deadline:
            assert complete(cluster).status_code == 200
            time.sleep(0.1)


def complete(cluster: LocalCluster) -> httpx.Response:
    body = {"model": "echo", "prompt": "a", "max_tokens": 1}
    return httpx.post(f"{cluster.url}/v1/completions", json=body, timeout=30)
