"""The servers that the benchmarks compare: this product, vLLM's own, the bare echo application.

Each runs in processes of its own that inherit a run id, so that all its CPU time is counted.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.local_cluster import LocalCluster, model_application, router_application
from deployments.vllm.tiny_model import make_tiny_llama
from truthgpt_serve.cluster.ports import free_port
from truthgpt_serve.cluster.processes import create_run_environment, create_run_id, end_run

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / ".models" / "tiny-llama"
START_TIMEOUT_S = 180.0

ENGINE: dict[str, Any] = {
    "max_model_len": 1024,
    "max_num_seqs": 128,
    "enforce_eager": True,
    "kv_cache_memory_bytes": 1 << 30,
}
"""Engine arguments of both sides."""

CPU_EXECUTOR = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
"""Runs the model in the engine's own process: what the product chooses on CPU."""

ENGINE_ENV = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
"""Thread settings of both sides."""


@dataclass(frozen=True, slots=True)
class Side:
    """A running server.

    Attributes:
        url: Its address, without a path.
        run_id: Under which its processes are found.
        seconds_to_start: From the start command until it answered.
    """

    url: str
    run_id: str
    seconds_to_start: float


@contextmanager
def product(
    *, num_routers: int = 1, env: Mapping[str, str] | None = None, dtype: str = "auto"
) -> Iterator[Side]:
    """Starts this product with three models: the small language model and two others, idle."""
    weights = make_tiny_llama(MODEL)
    started_s = time.monotonic()
    with LocalCluster(ROOT / "configs" / "ray.env", env={**ENGINE_ENV, **(env or {})}) as cluster:
        language_model = {
            "model": {"family": "vllm", "name_or_path": str(weights)},
            "model_optim": {"dtype": dtype},
            "hardware": {"gpus": 0, "cpus": 1},
            "serving": {"engine": ENGINE, "max_ongoing_requests": 128},
        }
        echo = {
            "model": {"family": "echo"},
            "hardware": {"gpus": 0, "cpus": 0.1},
            "serving": {"max_ongoing_requests": 256, "engine": ECHO_ENGINE},
        }
        cluster.deploy(
            [
                model_application("llm", language_model),
                model_application("echo", echo),
                model_application("echo-2", echo),
                router_application(cluster.port, num_replicas=num_routers),
            ]
        )
        cluster.wait_until_ready(timeout_s=START_TIMEOUT_S)
        yield Side(cluster.url, cluster.run_id, time.monotonic() - started_s)


ECHO_ENGINE: dict[str, Any] = {"token_interval_s": 0.005}


@contextmanager
def own_server(executor: str | None = CPU_EXECUTOR, *, dtype: str = "auto") -> Iterator[Side]:
    """Starts vLLM's own OpenAI server on the same model with the same engine arguments.

    Args:
        executor: By default the product's, so that nothing differs; None is what vLLM takes on CPU
            when none is named: a worker process more.
        dtype: The number format.
    """
    port = free_port()
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server",
        "--host", "127.0.0.1", "--port", str(port),
        "--model", str(make_tiny_llama(MODEL)), "--served-model-name", "llm",
        "--disable-uvicorn-access-log", "--uvicorn-log-level", "warning", "--seed", "42",
        "--dtype", dtype,
    ]  # fmt: skip
    if executor is not None:
        command += ["--distributed-executor-backend", executor]
    command += engine_options(ENGINE)
    with run_process(command, ENGINE_ENV, f"http://127.0.0.1:{port}") as side:
        yield side


def engine_options(engine: Mapping[str, Any]) -> Iterator[str]:
    """Yields engine arguments as vLLM's command line takes them."""
    for name, value in engine.items():
        yield f"--{name.replace('_', '-')}"
        if value is not True:
            yield str(value)


@contextmanager
def bare_echo() -> Iterator[Side]:
    """Serves the echo family's application by uvicorn alone."""
    port = free_port()
    command = [sys.executable, str(ROOT / "benchmarks" / "echo_server.py"), str(port)]
    with run_process(command, {}, f"http://127.0.0.1:{port}") as side:
        yield side


@contextmanager
def run_process(command: list[str], env: Mapping[str, str], url: str) -> Iterator[Side]:
    """Runs a server whose `/health` answers once it is ready; ends it with all it started."""
    run_id = create_run_id()
    started_s = time.monotonic()
    environment = {**os.environ, **env, **create_run_environment(run_id)}
    process = subprocess.Popen(
        command, env=environment, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    os.set_blocking(process.stderr.fileno(), False)
    try:
        while not _answers(f"{url}/health"):
            if process.poll() is not None or time.monotonic() - started_s > START_TIMEOUT_S:
                log = (process.stderr.read() or b"").decode(errors="replace")[-3000:]
                raise SystemExit(f"{command[1:3]} did not start:\n{log}")
            time.sleep(0.1)
        yield Side(url, run_id, time.monotonic() - started_s)
    finally:
        process.terminate()
        end_run(run_id, timeout_s=30)
        process.wait(timeout=30)
        process.stderr.close()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except (OSError, urllib.error.URLError):
        return False
