"""Runs `make serve`'s program in tests, with ports and folders of its own; knows no tests."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.local_cluster import model_application
from truthgpt_serve.cluster.ports import busy_ports, free_port
from truthgpt_serve.cluster.private_files import LINK
from truthgpt_serve.cluster.processes import end_run, find_run, read_process, send_signal
from truthgpt_serve.cluster.service.run_file import RunFile

ROOT = Path(__file__).resolve().parents[2]
START_S = 300
STOP_S = 90


def echo_config() -> dict[str, Any]:
    """Returns the smallest Serve file: a replica of the router, and one of an echo model."""
    echo = {"model": {"family": "echo"}, "hardware": {"cpus": 0.1}}
    router = {
        "name": "router",
        "route_prefix": "/",
        "import_path": "truthgpt_serve.app:router",
        "args": {"num_replicas": 1},
    }
    return {"applications": [model_application("echo", echo), router]}


@dataclass(frozen=True)
class Shell:
    """Runs scripts/serve.py as `make` does, with ports and folders of its own."""

    folder: Path
    port: int
    environment: dict[str, str]
    prefix: tuple[str, ...] = ()

    @property
    def run_file(self) -> RunFile:
        return RunFile(self.folder)

    def command(self, name: str) -> list[str]:
        config = str(self.folder / "serve.yaml")
        program = str(ROOT / "scripts" / "serve.py")
        options = ["--config", config, "--run-dir", str(self.folder)]
        return [*self.prefix, sys.executable, program, name, *options]

    def run(self, name: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(name),
            env=self.environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=STOP_S,
            check=False,
        )

    def run_in_background(self) -> subprocess.Popen[bytes]:
        """Starts the service, and waits for nothing."""
        with self.log.open("wb") as log:
            return subprocess.Popen(
                self.command("start"),
                env=self.environment,
                cwd=ROOT,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def start(self) -> subprocess.Popen[bytes]:
        """Starts the service, and waits until it is ready."""
        service = self.run_in_background()
        deadline = time.monotonic() + START_S
        while "[serve] ready after" not in self.log.read_text():
            assert service.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)
        return service

    def wait_for(self, *texts: str, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Waits until the terminal shows these texts."""
        deadline = time.monotonic() + START_S
        while any(text not in self.log.read_text() for text in texts):
            assert time.monotonic() < deadline, (texts, self.log.read_text())
            meanwhile()
            time.sleep(0.2)

    def kill(self) -> None:
        """Ends what a test has left running: first what would start it again."""
        state = self.run_file.read()
        if state is None:
            return
        runner = read_process(state["pid"])
        if runner is not None and runner.started == state["started"]:
            send_signal(runner, signal.SIGKILL)
        end_run(state["run_id"], timeout_s=STOP_S)

    @property
    def log(self) -> Path:
        """What the terminal shows."""
        return self.folder / "screen.log"

    @property
    def output(self) -> Path:
        """What Ray and the engines print."""
        return self.folder / "service.log"

    @property
    def run_id(self) -> str:
        state = self.run_file.read()
        assert state is not None
        return str(state["run_id"])


@contextmanager
def open_shell(
    folder: Path,
    config: dict[str, Any],
    *,
    host: str = "127.0.0.1",
    prefix: tuple[str, ...] = (),
    env: Mapping[str, str] | None = None,
) -> Iterator[Shell]:
    """Writes the Serve file with a free port; at the end nothing of its run is left.

    Args:
        folder: For the Serve file and the run.
        config: The Serve file without `http_options`.
        host: Where the service shall listen.
        prefix: Words in front of each command.
        env: Variables on top of this process's.
    """
    port = free_port()
    config["http_options"] = {"host": host, "port": port}
    (folder / "serve.yaml").write_text(yaml.safe_dump(config))
    environment = {
        **os.environ,
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free_port()),
        **(env or {}),
    }
    shell = Shell(folder, port, environment, prefix)
    try:
        yield shell
    finally:
        shell.kill()
        if (private := folder / LINK).is_symlink():
            shutil.rmtree(private.readlink(), ignore_errors=True)


def assert_nothing_is_left(shell: Shell, run_id: str) -> None:
    assert find_run(run_id) == []
    assert busy_ports("0.0.0.0", [shell.port]) == []
    assert shell.run_file.read() is None
