"""Starts `vllm_server.py`, a vLLM model behind HTTP without Ray, and looks at its processes."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest

from truthgpt_serve.cluster.ports import free_port
from truthgpt_serve.cluster.processes import create_run_environment, create_run_id

PROGRAMS = Path(__file__).parent / "programs"
START_TIMEOUT_S = 400


@dataclass
class Server:
    """A running `vllm_server.py`, whose processes have a run id."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path
    client: openai.OpenAI
    run_id: str


def make_config(folder: Path, **changes: Any) -> dict[str, Any]:
    engine = {
        "enforce_eager": True,
        "max_model_len": 1024,
        "kv_cache_memory_bytes": "64M",
    }
    engine |= changes.pop("engine", {})
    return {
        "model": {"name_or_path": str(folder / "llama")},
        "hardware": {"gpus": 0, "cpus": 1},
        "model_optim": {"dtype": "float32"},
        "serving": {"engine": engine, **changes.pop("serving", {})},
        **changes,
    }


def run_program(
    name: str, *arguments: str, run_id: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs a program to its end, by whose run id the processes that it starts are found again."""
    return subprocess.run(
        [sys.executable, PROGRAMS / name, *arguments],
        capture_output=True,
        text=True,
        timeout=START_TIMEOUT_S,
        env=environment() | create_run_environment(run_id or create_run_id()),
    )


def environment() -> dict[str, str]:
    return os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}


@contextlib.contextmanager
def serve(
    config: dict[str, Any], log: Path, *, start_timeout_s: float = START_TIMEOUT_S
) -> Iterator[Server]:
    port, run_id = free_port(), create_run_id()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, PROGRAMS / "vllm_server.py", str(port), "tiny", json.dumps(config)],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment() | create_run_environment(run_id),
        )
    url = f"http://127.0.0.1:{port}"
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)
    server = Server(process, url, log, client, run_id)
    tree: list[psutil.Process] = []
    try:
        wait_for(lambda: is_up(server), start_timeout_s, log)
        tree = descendants(process.pid)
        yield server
    finally:
        client.close()
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(5)
        assert not alive(tree, within_s=10)


def is_up(server: Server) -> bool:
    if server.process.poll() is not None:
        pytest.fail(f"the server ended:\n{server.log.read_text()[-4000:]}")
    try:
        return httpx.get(f"{server.url}/check").status_code == 200
    except httpx.TransportError:
        return False


def wait_for(condition: Any, timeout_s: float, log: Path | None = None) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            text = log.read_text()[-4000:] if log else ""
            pytest.fail(f"not reached within {timeout_s} s\n{text}")
        time.sleep(0.1)


def descendants(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def alive(processes: list[psutil.Process], *, within_s: float) -> list[psutil.Process]:
    """Returns which processes still run after at most `within_s` seconds."""
    deadline = time.monotonic() + within_s
    while True:
        left = [process for process in processes if is_alive(process)]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.1)


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
