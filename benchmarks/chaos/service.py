"""The service that is struck: started and watched as `make serve` does it, with its own ports."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.local_cluster import model_application
from benchmarks.sides import ROOT
from truthgpt_serve.access.key_edit import add_key
from truthgpt_serve.cluster.ports import free_port
from truthgpt_serve.cluster.private_files import LINK
from truthgpt_serve.cluster.processes import end_run, read_process, send_signal
from truthgpt_serve.cluster.service.run_file import RunFile
from truthgpt_serve.validate.applications import ROUTER_IMPORT

START_S = 300.0
STOP_S = 90.0
READY = "[serve] ready after"
SMALL = {"cpus": 0.1, "gpus": 0}
TOKEN_INTERVAL_S = 0.08


@dataclass(frozen=True)
class Service:
    """A running service.

    Attributes:
        folder: Its files.
        url: Its address.
        key: An API key, which may read the usage too.
    """

    folder: Path
    url: str
    key: str

    @property
    def run_id(self) -> str:
        """Its run."""
        state = RunFile(self.folder).read()
        if state is None:
            raise RuntimeError("the service does not run")
        return str(state["run_id"])

    @property
    def notes(self) -> Path:
        """Where the model notes what it works on."""
        return self.folder / "notes"

    @property
    def screen(self) -> str:
        """What the terminal shows."""
        return (self.folder / "screen.log").read_text()


def serve_file(folder: Path, port: int, more: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the Serve file: two routers, and two replicas of a model of slow words."""
    auth = {"auth": {"keys_file": str(folder / "keys.yaml")}}
    words = {
        "model": {"family": "words", "import": "benchmarks.chaos.words"},
        "hardware": SMALL,
        "serving": {
            "num_replicas": 2,
            "engine": {"token_interval_s": TOKEN_INTERVAL_S, "notes": str(folder / "notes")},
        },
        **auth,
    }
    router = {
        "name": "router",
        "route_prefix": "/",
        "import_path": ROUTER_IMPORT,
        "args": {"num_replicas": 2, **auth},
    }
    more = [{**entry, "args": {**entry["args"], **auth}} for entry in more]
    options = {"host": "127.0.0.1", "port": port}
    return {
        "http_options": options,
        "applications": [model_application("words", words), router, *more],
    }


@contextmanager
def running(folder: Path, more: list[dict[str, Any]]) -> Iterator[Service]:
    """Starts the service with further applications; ends all of it."""
    port = free_port()
    service = Service(
        folder,
        f"http://127.0.0.1:{port}",
        add_key(folder / "keys.yaml", {"name": "load", "admin": True}),
    )
    service.notes.mkdir()
    config = folder / "serve.yaml"
    config.write_text(yaml.safe_dump(serve_file(folder, port, more)))
    (folder / "tmp").mkdir()
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free_port()),
        "TMPDIR": str(folder / "tmp"),
    }
    program = [sys.executable, str(ROOT / "scripts" / "serve.py"), "start"]
    with (folder / "screen.log").open("wb") as screen:
        child = subprocess.Popen(
            [*program, "--config", str(config), "--run-dir", str(folder)],
            env=env, cwd=ROOT, stdout=screen, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + START_S
        while READY not in service.screen:
            if child.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the service does not start:\n{service.screen}")
            time.sleep(0.2)
        yield service
    finally:
        _end(service, child)


def _end(service: Service, child: subprocess.Popen[bytes]) -> None:
    state = RunFile(service.folder).read()
    if (process := read_process(child.pid)) is not None:
        send_signal(process, signal.SIGINT)
    try:
        child.wait(STOP_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    if state is not None:
        end_run(state["run_id"], timeout_s=STOP_S)
    if (private := service.folder / LINK).is_symlink():
        shutil.rmtree(private.readlink(), ignore_errors=True)
