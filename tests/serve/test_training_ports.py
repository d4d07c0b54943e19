"""A training run listens on the loopback address alone, and leaves no token behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from deployments.vllm.tiny_model import make_tiny_llama
from tests.serve.listeners import Listener, find_listeners
from tests.serve.two_nodes import Network, can_make_networks
from tests.support.training_runs import sections_of, sentences, write_rows
from truthgpt_serve.cluster.processes import create_run_environment, create_run_id, end_run

TRUTHGPT = str(Path(sys.executable).parent / "truthgpt")
TIMEOUT_S = 800
HOST = 1

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        not can_make_networks(),
        reason="needs root and Debian's iproute2 to make network namespaces",
    ),
]


def test_workers_listen_on_loopback_alone(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    make_tiny_llama(tmp_path / "llama")
    write_rows(tmp_path / "texts.jsonl", [{"text": text} for text in sentences(24)])
    training = {"epochs": 4}
    sections = sections_of(tmp_path / "llama", tmp_path / "texts.jsonl", training=training)
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump({**sections, "run_name": "run"}))
    with Network(80) as network:
        found = listeners_while(
            [*network.prefix(HOST), TRUTHGPT, "train", str(config), "--workers", "2"],
            tmp_path,
            home,
        )
    assert [each for each in found if not each.is_local] == []
    workers = {each.port for each in found if "RayTrainWorker" in each.title}
    assert len(workers) > 2, found
    assert list(home.rglob("auth_token")) == []


def listeners_while(command: list[str], folder: Path, home: Path) -> set[Listener]:
    """Runs a command to its end; returns what its processes listened on meanwhile."""
    run_id = create_run_id()
    environment = {**os.environ, **create_run_environment(run_id), "HOME": str(home)}
    found: set[Listener] = set()
    output = folder / "output"
    with output.open("w") as file:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=file, stderr=subprocess.STDOUT
        )
        try:
            deadline = time.monotonic() + TIMEOUT_S
            while process.poll() is None:
                assert time.monotonic() < deadline, output.read_text()
                found |= set(find_listeners(run_id))
                time.sleep(0.1)
        finally:
            process.kill()
            process.wait(10)
            end_run(run_id)
    assert process.returncode == 0, output.read_text()
    return found
