"""A request reaches one replica at most, whatever happens to replicas, proxies and connections."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.local_cluster import LocalCluster, model_application, router_application
from tests.serve.bare_cluster import install
from truthgpt_serve.cluster.haproxy.direct import WAY_HEADER
from truthgpt_serve.cluster.processes import read_process

SERVE = Path(__file__).parents[1]
COUNTING: dict[str, Any] = {
    "model": {"family": "counting", "import": "counting_models"},
    "hardware": {"gpus": 0, "cpus": 0.1},
    "serving": {"num_replicas": 2, "max_ongoing_requests": 64},
}
ECHO: dict[str, Any] = {"model": {"family": "echo"}, "hardware": {"gpus": 0, "cpus": 0.1}}
WAYS: dict[str, dict[str, str]] = {"direct": {}, "router": {WAY_HEADER: "router"}}
NUM_CLIENTS = 8
RECOVERY_S = 120
IDLE_S = (0.0, 0.5, 5.1)
"""Pauses between requests; HAProxy closes what is idle toward a replica after 5 s."""


@dataclass(frozen=True)
class Counted:
    """The service, and the folder in which each request leaves its marks."""

    cluster: LocalCluster
    marks: Path

    def ask(
        self, client: httpx.Client, name: str, *, way: str = "direct", **inputs: Any
    ) -> httpx.Response:
        body = {"model": "counting", "inputs": {"text": name, **inputs}}
        return client.post("/v1/infer", json=body, headers=WAYS[way])

    def num_runs(self, name: str) -> int:
        path = self.marks / name
        return len(path.read_text().splitlines()) if path.exists() else 0

    def wait_for_replicas(self, *, without: set[int] | None = None) -> set[int]:
        """Waits until two replicas run that are not exactly those of before."""
        deadline = time.monotonic() + RECOVERY_S
        while True:
            pids = set(self.cluster.replica_pids("counting"))
            if len(pids) == 2 and pids != without:
                return pids
            assert time.monotonic() < deadline
            time.sleep(0.2)

    def wait_for_end(self, pid: int) -> None:
        deadline = time.monotonic() + RECOVERY_S
        while read_process(pid) is not None:
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def deploy(self, *more: dict[str, Any]) -> None:
        """Deploys; each change of the applications replaces HAProxy."""
        router = router_application(self.cluster.port)
        self.cluster.deploy([self.application(), *more, router])

    def application(self) -> dict[str, Any]:
        counting = model_application("counting", COUNTING)
        counting["runtime_env"] = {"env_vars": {"COUNTING_FOLDER": str(self.marks)}}
        return counting


@pytest.fixture(scope="module")
def counted(bare: LocalCluster, modules: Path, tmp_path_factory: pytest.TempPathFactory) -> Counted:
    shutil.copy(SERVE / "user_counting.py", modules / "counting_models.py")
    counted = Counted(bare, tmp_path_factory.mktemp("marks"))
    install(bare, [counted.application()])
    return counted


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("end", ["exit", "segfault"])
def test_a_request_that_kills_its_replica_kills_no_other(
    counted: Counted, end: str, way: str
) -> None:
    """Also on connections that carried requests before, which HAProxy closes in silence.

    Of that the router makes an answer; on the direct way the client sees it.
    """
    before = counted.wait_for_replicas()
    name = f"{end}-{way}"
    with httpx.Client(base_url=counted.cluster.url, timeout=60) as client:
        for number in range(20):
            assert counted.ask(client, f"{name}-{number}", way=way).status_code == 200
        try:
            refused = counted.ask(client, name, way=way, end=end)
        except httpx.RemoteProtocolError:
            assert way == "direct"
        else:
            assert refused.status_code in (502, 503)
            assert refused.json()["error"]["code"] in ("upstream_error", "model_unavailable")
        assert counted.num_runs(name) == 1
        # Until its last moment the port of the dead one takes connections.
        counted.wait_for_end(int((counted.marks / name).read_text()))
        # The other one goes on, and no other client notices.
        answers = [counted.ask(client, f"{name}-after-{number}") for number in range(20)]
    assert {answer.status_code for answer in answers} == {200}
    assert len(before & counted.wait_for_replicas(without=before)) == 1


def _load(counted: Counted, prefix: str, stop: threading.Event) -> list[tuple[str, int]]:
    """Sends requests on one connection until told to stop; returns their names and statuses."""
    found = []
    with httpx.Client(base_url=counted.cluster.url, timeout=60) as client:
        for number in range(100_000):
            if stop.is_set():
                break
            name = f"{prefix}-{number}"
            try:
                status = counted.ask(client, name, sleep_s=0.01).status_code
            except httpx.HTTPError:
                status = 0
            found.append((name, status))
            stop.wait(IDLE_S[number % len(IDLE_S)] if number % 20 < len(IDLE_S) else 0)
    return found


def _under_load(counted: Counted, what: str, disturb: Any) -> list[tuple[int, int]]:
    """Returns how often each request ran, and its status."""
    stop = threading.Event()
    with ThreadPoolExecutor(NUM_CLIENTS) as clients:
        runs = [
            clients.submit(_load, counted, f"{what}-{number}", stop)
            for number in range(NUM_CLIENTS)
        ]
        try:
            time.sleep(2)
            disturb()
            time.sleep(2)
        finally:
            stop.set()
        asked = [found for run in runs for found in run.result(timeout=120)]
    assert len(asked) > NUM_CLIENTS
    return [(counted.num_runs(name), status) for name, status in asked]


def test_reloads_and_idle_connections_cost_nothing(counted: Counted) -> None:
    """Each request runs once, though HAProxy is replaced and connections lie idle meanwhile."""

    def reload() -> None:
        for number in range(3):
            counted.deploy(model_application(f"more-{number}", ECHO))
            counted.cluster.wait_until_ready(timeout_s=RECOVERY_S)

    assert set(_under_load(counted, "reload", reload)) == {(1, 200)}


def test_a_killed_replica_has_its_requests_run_nowhere_else(counted: Counted) -> None:
    pids = counted.wait_for_replicas()
    outcomes = _under_load(counted, "kill", lambda: os.kill(min(pids), signal.SIGKILL))
    assert {num_runs for num_runs, status in outcomes if status == 200} == {1}
    assert {num_runs for num_runs, status in outcomes if status != 200} <= {0, 1}
    assert {status for _, status in outcomes} <= {200, 502, 503}
    assert sum(status != 200 for _, status in outcomes) <= NUM_CLIENTS
