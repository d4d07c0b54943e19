"""The cluster that the modules of this folder share: two vLLM models, small ones and a router."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from benchmarks.local_cluster import LocalCluster, model_application, router_application
from deployments.vllm.tiny_model import make_tiny_llama
from tests.serve.two_engines.small_models import BRIEF_S, MAX_BODY, small_models
from truthgpt_serve.cluster.processes import find_run
from truthgpt_serve.prometheus import REPLICA_REQUESTS

ROOT = Path(__file__).resolve().parents[3]
RAY_ENV = ROOT / "configs" / "ray.env"
START_TIMEOUT_S = 400
REQUEST_TIMEOUT_S = 90
MAX_MODEL_LEN = 4096
MAX_ONGOING = 4


@dataclass(frozen=True)
class VllmService:
    """The running service: the model `tiny`, `brief`, whose requests may take 3 s, and small ones.

    Attributes:
        cluster: Its cluster.
        http: A client of the one address.
    """

    cluster: LocalCluster
    http: httpx.Client

    def metric(self, name: str, model: str = "tiny") -> float:
        """Returns the sum of one of the engine's own metrics."""
        return self._sum(f"vllm:{name}{{", model)

    def num_queued(self, model: str = "tiny") -> float:
        """Returns how many requests wait in front of the engine."""
        return self._sum(f'{REPLICA_REQUESTS}{{state="queued"', model)

    def _sum(self, beginning: str, model: str) -> float:
        text = self._metrics(model)
        lines = [line for line in text.splitlines() if line.startswith(beginning)]
        assert lines, f"no metric {beginning}:\n{text[:2000]}"
        return sum(float(line.split()[-1]) for line in lines)

    def _metrics(self, model: str) -> str:
        """Returns the page; just after a start HAProxy may still be without the replica."""
        answer = httpx.Response(503)
        for _ in range(20):
            answer = self.http.get(f"/models/{model}/metrics", follow_redirects=True)
            if answer.status_code != 503:
                break
            time.sleep(0.5)
        return answer.text

    def num_running(self, model: str = "tiny") -> float:
        """Returns how many sequences the engine has, those that wait in it included."""
        return self.metric("num_requests_running", model) + self.metric(
            "num_requests_waiting", model
        )

    def send(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
    ) -> tuple[int, bytes]:
        """Sends a request whose path nothing tidies up; returns status and body."""
        connection = http.client.HTTPConnection(
            self.cluster.host.address, self.cluster.port, timeout=REQUEST_TIMEOUT_S
        )
        with closing(connection):
            data = None if body is None else json.dumps(body)
            kind = {} if body is None else {"content-type": "application/json"}
            connection.request(method, path, data, {**kind, **(headers or {})})
            answer = connection.getresponse()
            return answer.status, answer.read()

    def find_processes(self, title: str) -> list[psutil.Process]:
        """Returns the service's processes whose title holds a text."""
        found = []
        for process in find_run(self.cluster.run_id):
            with suppress(psutil.Error):
                candidate = psutil.Process(process.pid)
                if title in " ".join(candidate.cmdline()):
                    found.append(candidate)
        return found

    def serve_log(self, model: str = "tiny") -> str:
        """Returns what Ray Serve has logged in the replica of a model."""
        logs = (self.cluster.folder / "ray" / "session_latest" / "logs" / "serve").glob(
            f"replica_{model}_*.log"
        )
        return "".join(path.read_text() for path in logs)

    @contextmanager
    def request(self, path: str, body: dict[str, Any]) -> Iterator[socket.socket]:
        """Sends a request and leaves at the end of the block, whatever has been answered."""
        data = json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nhost: {self.cluster.host.address}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
        )
        address = (self.cluster.host.address, self.cluster.port)
        with socket.create_connection(address, timeout=REQUEST_TIMEOUT_S) as client:
            client.sendall(head.encode() + data)
            yield client


@pytest.fixture(scope="package")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmService]:
    folder = tmp_path_factory.mktemp("vllm")
    weights = make_tiny_llama(folder / "llama")
    config: dict[str, Any] = {
        "model": {"name_or_path": str(weights)},
        "hardware": {"cpus": 1, "gpus": 0},
        "model_optim": {"dtype": "float32"},
    }
    engine = {
        "enforce_eager": True,
        "max_model_len": MAX_MODEL_LEN,
        "max_num_seqs": 16,
        "kv_cache_memory_bytes": "128M",
        "enable_auto_tool_choice": True,
        "tool_call_parser": "hermes",
    }
    serving = {"max_ongoing_requests": MAX_ONGOING, "max_queued_requests": 64, "engine": engine}
    brief = {**serving, "max_request_s": BRIEF_S, "max_body_bytes": MAX_BODY}
    modules = folder / "modules"
    modules.mkdir()
    with LocalCluster(RAY_ENV, env={"PYTHONPATH": f"{modules}:{ROOT}"}) as cluster:
        cluster.deploy(
            [
                model_application("tiny", {**config, "serving": serving}),
                model_application("brief", {**config, "serving": brief}),
                *small_models(modules),
                router_application(cluster.port, num_replicas=1),
            ]
        )
        cluster.wait_until_ready(timeout_s=START_TIMEOUT_S)
        with httpx.Client(base_url=cluster.url, timeout=REQUEST_TIMEOUT_S) as http:
            yield VllmService(cluster, http)


def wait_until(condition: Callable[[], bool], timeout_s: float, message: str = "") -> None:
    """Waits for a state; fails after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not reached within {timeout_s} s: {message}"
        time.sleep(0.05)
