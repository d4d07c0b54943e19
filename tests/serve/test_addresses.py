"""The service on one address only, as Ray's own Python proxy can have it (HAProxy cannot)."""

from __future__ import annotations

import time
from collections.abc import Iterator

import httpx
import pytest

from benchmarks.local_cluster import LocalCluster, model_application, token_headers
from truthgpt_serve.cluster.service.ray_idle import MODULES_VARIABLE

START_TIMEOUT_S = 200


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(None, env={MODULES_VARIABLE: "ServeHead,JobHead,NodeHead"}) as cluster:
        yield cluster


@pytest.mark.parametrize(("host", "shown"), [("127.0.0.2", "127.0.0.2"), ("::1", "[::1]")])
def test_the_router_reaches_a_proxy_that_listens_on_one_address(
    cluster: LocalCluster, host: str, shown: str
) -> None:
    echo = {"model": {"family": "echo"}, "hardware": {"gpus": 0, "cpus": 0.1}}
    router = {
        "name": "router",
        "route_prefix": "/",
        "import_path": "truthgpt_serve.app:router",
        "args": {},
    }
    cluster.deploy(
        [model_application("echo", echo), router],
        http_options={"host": host, "port": cluster.port},
    )
    body = {"model": "echo", "prompt": "one two", "max_tokens": 2}
    deadline = time.monotonic() + START_TIMEOUT_S
    status, text = 0, ""
    while status != 200 and time.monotonic() < deadline:
        time.sleep(0.5)
        try:
            answer = httpx.post(f"http://{shown}:{cluster.port}/v1/completions", json=body)
        except httpx.TransportError as error:
            text = repr(error)
        else:
            status, text = answer.status_code, answer.text
    assert status == 200, text
    assert answer.json()["choices"][0]["text"] == " one two"
    shut_serve_down(cluster)


def shut_serve_down(cluster: LocalCluster) -> None:
    """Ends Serve, not Ray: a running Serve keeps its address."""
    url = f"{cluster.dashboard_url}/api/serve/applications/"
    answer = httpx.delete(url, headers=token_headers(cluster.folder), timeout=START_TIMEOUT_S)
    assert answer.status_code == 200, answer.text
