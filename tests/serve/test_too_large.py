"""A model that finds no room waits, and says so; the router and the other models serve."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.local_cluster import model_application
from tests.serve.shell import START_S, STOP_S, open_shell

pytestmark = pytest.mark.timeout(900)
WAITS = "1 replica waits for resources: each needs 4096 CPU (the cluster has "


def test_the_router_does_not_wait_behind_models(tmp_path: Path) -> None:
    echo = {"model": {"family": "echo"}, "hardware": {"cpus": 0}}
    huge = {"model": {"family": "echo"}, "hardware": {"cpus": 4096}}
    # What takes all the cores that there may be, one by one, stands in front of the router.
    greedy = {"model": {"family": "echo"}, "hardware": {"cpus": 1}, "serving": {"num_replicas": 3}}
    router = {"name": "router", "route_prefix": "/", "import_path": "truthgpt_serve.app:router"}
    models = [("huge", huge), ("echo", echo), ("greedy", greedy)]
    applications = [*(model_application(name, config) for name, config in models), router]
    with open_shell(tmp_path, {"applications": applications}) as shell:
        service = shell.run_in_background()
        check(shell.log, f"http://127.0.0.1:{shell.port}")
        service.send_signal(signal.SIGINT)
        assert service.wait(STOP_S) == 0, shell.log.read_text()
        log = shell.log.read_text()
    assert "[serve] note: this machine alone is too small: " in log
    assert "hardware.cpus: 4096 is more than this machine has" in log


def check(log: Path, url: str) -> None:
    deadline = time.monotonic() + START_S
    with httpx.Client(base_url=url, timeout=10) as client:
        while not (waits := waiting(client)):
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
        assert waits.startswith(WAITS)
        assert client.get("/health").status_code == 200
        assert models_of(client)["huge"]["waits_for"].startswith(WAITS)
        refused = client.post("/v1/completions", json={"model": "huge", "prompt": "a"})
        assert refused.status_code == 503
        assert refused.headers["retry-after"]
        assert WAITS in refused.json()["error"]["message"]
        while (answer := complete(client, "echo")).status_code != 200:
            assert time.monotonic() < deadline, answer.text
            time.sleep(0.5)
        assert models_of(client)["huge"]["waits_for"].startswith(WAITS)
        assert "waits_for" not in models_of(client)["echo"]


def models_of(client: httpx.Client) -> dict[str, dict[str, Any]]:
    return {entry["id"]: entry for entry in client.get("/v1/models").json()["data"]}


def waiting(client: httpx.Client) -> str:
    try:
        answer = client.get("/ready")
    except httpx.HTTPError:
        return ""
    if answer.status_code != 503 or "json" not in answer.headers["content-type"]:
        return ""
    models = answer.json().get("models") or {}
    return str(models.get("huge", {}).get("message", ""))


def complete(client: httpx.Client, model: str) -> httpx.Response:
    return client.post("/v1/completions", json={"model": model, "prompt": "a", "max_tokens": 2})
