"""The servers that `benchmarks.batching` compares: this product, and LitServe in its own world."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.batching_classes import FOLDER_VARIABLE
from benchmarks.local_cluster import LocalCluster, model_application, router_application
from benchmarks.sides import ROOT, START_TIMEOUT_S, Side, run_process
from truthgpt_serve.cluster.ports import free_port
from truthgpt_serve.cluster.processes import find_run

LITSERVE = "litserve==0.2.19"
LITSERVE_ENVIRONMENT = ROOT / ".bench" / "litserve"
INSTALL_TIMEOUT_S = 300.0
THREADS = {"OMP_NUM_THREADS": "1"}


class MissingSideError(Exception):
    """A server to compare with cannot be installed here; the message says why."""


@dataclass(frozen=True, slots=True)
class LitServeOptions:
    """LitServe's own settings.

    The defaults are the best of those tried on two cores: timeouts of 0, 2 and 10 ms, batches of 8,
    16 and 32, both queues.

    Attributes:
        max_batch_size: Most requests in one call.
        batch_timeout_s: How long LitServe waits for a full batch, in seconds.
        fast_queue: Whether its processes talk over ZeroMQ instead of a `multiprocessing` queue.
    """

    max_batch_size: int
    batch_timeout_s: float = 0.0
    fast_queue: bool = True


@contextmanager
def product(names: list[str], folder: Path, batching: Mapping[str, Any]) -> Iterator[Side]:
    """Starts this product with one application for each of the benchmark's classes."""
    started_s = time.monotonic()
    env = {**THREADS, FOLDER_VARIABLE: str(folder), "PYTHONPATH": str(ROOT)}
    with LocalCluster(ROOT / "configs" / "ray.env", env=env) as cluster:
        models = [
            model_application(
                name,
                {
                    "task": "custom",
                    "model": {"family": f"bench-{name}", "import": "benchmarks.batching_family"},
                    "hardware": {"gpus": 0, "cpus": 1},
                    "serving": {"batching": dict(batching)},
                },
            )
            for name in names
        ]
        cluster.deploy([*models, router_application(cluster.port, num_replicas=1)])
        cluster.wait_until_ready(timeout_s=START_TIMEOUT_S)
        yield Side(cluster.url, cluster.run_id, time.monotonic() - started_s)


@contextmanager
def litserve(name: str, folder: Path, options: LitServeOptions) -> Iterator[Side]:
    """Starts LitServe with one class; `install_litserve` has made its environment.

    Raises:
        SystemExit: It does not start.
    """
    port = free_port()
    command = [
        str(LITSERVE_ENVIRONMENT / "bin" / "python"),
        str(ROOT / "benchmarks" / "batching_litserve.py"),
        name, str(port), str(options.max_batch_size), str(options.batch_timeout_s),
        str(int(options.fast_queue)),
    ]  # fmt: skip
    env = {**THREADS, FOLDER_VARIABLE: str(folder)}
    with run_process(command, env, f"http://127.0.0.1:{port}") as side:
        yield side


@contextmanager
def stopped(side: Side) -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """Stops a server's processes; yields a function whose context lets them run for a while.

    LitServe with a `batch_timeout` of 0, its fastest, spins on a whole core without requests.
    """

    @contextmanager
    def running() -> Iterator[None]:
        _signal(side, signal.SIGCONT)
        try:
            yield
        finally:
            _signal(side, signal.SIGSTOP)

    _signal(side, signal.SIGSTOP)
    try:
        yield running
    finally:
        _signal(side, signal.SIGCONT)


def _signal(side: Side, number: signal.Signals) -> None:
    for process in find_run(side.run_id):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)


def install_litserve() -> str:
    """Makes LitServe's environment if there is none yet; returns its version.

    Its numpy and onnxruntime are those of this environment, so that both sides compute alike.

    Raises:
        MissingSideError: A package cannot be installed.
    """
    python = LITSERVE_ENVIRONMENT / "bin" / "python"
    same = [f"{name}=={version(name)}" for name in ("numpy", "onnxruntime")]
    try:
        if not python.exists():
            _run(sys.executable, "-m", "venv", str(LITSERVE_ENVIRONMENT))
        _run(str(python), "-m", "pip", "install", "-q", LITSERVE, *same)
        program = "import importlib.metadata as m; print(m.version('litserve'))"
        return _run(str(python), "-c", program).strip()
    except (OSError, subprocess.SubprocessError) as error:
        detail = str(getattr(error, "stderr", None) or error).strip().splitlines()[-1]
        raise MissingSideError(f"{LITSERVE} cannot be installed: {detail}") from error


def _run(*command: str) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=True
    )
    return done.stdout
