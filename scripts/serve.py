"""Starts the service in the foreground, and stops all of it: `serve.py start`, `serve.py stop`.

Knows how processes are found and ended, and nothing of what the Serve file names.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

import yaml

from truthgpt_serve.haproxy import BINARY_VARIABLE, program_path
from truthgpt_serve.local_cluster import read_environment_file
from truthgpt_serve.processes import (
    Process,
    busy_ports,
    create_run_environment,
    create_run_id,
    end_run,
    find_run,
    is_answered,
    read_process,
    send_signal,
    wait_for_ports,
)

ROOT = Path(__file__).resolve().parent.parent
RAY_ENV = ROOT / "configs" / "ray.env"
RUNNER = ROOT / "scripts" / "serve_run.py"
GRACE_S = 15.0
"""How long running requests may take to finish after Ctrl-C or `make stop`."""
STOP_S = 45.0
"""How long ending all processes may take after that."""
ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PROXY_PORTS = {
    "RAY_SERVE_HAPROXY_STATS_PORT": 8404,
    "RAY_SERVE_HAPROXY_METRICS_PORT": 9101,
    "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": 8500,
}
"""Ports that the proxies take beside the service's own, by the variable that moves them."""
SHARED_PORT = "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT"
"""Where HAProxy sends what has no replica: a second service would listen there without an error and
answer for the first. On what its last connections left behind it listens without one too."""


def say(text: str) -> None:
    """Prints one line at once, also into a pipe."""
    with suppress(OSError):  # nobody reads it any more; what runs must be ended all the same
        print(f"[serve] {text}", flush=True)


def read_address(config: Path) -> tuple[str, int]:
    """Returns the host and port that the Serve file listens on."""
    options = (yaml.safe_load(config.read_text()) or {}).get("http_options") or {}
    return options.get("host", "127.0.0.1"), int(options.get("port", 8000))


class RunFile:
    """What one shell leaves for another to stop the service by: `serve.json` in a folder."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "serve.json"

    def lock(self) -> TextIO | None:
        """Takes the lock that the running service holds; None when it is held."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = open(self.path.with_suffix(".lock"), "w")  # noqa: SIM115  the caller closes it
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            return None
        return lock

    def read(self) -> dict[str, Any] | None:
        """Returns what the last `start` wrote, or None."""
        try:
            state: dict[str, Any] = json.loads(self.path.read_text())
        except (OSError, ValueError):
            return None
        return state

    def write(self, run_id: str, ports: list[int]) -> None:
        """Says that this process serves."""
        me = read_process(os.getpid())
        state = {
            "run_id": run_id,
            "pid": os.getpid(),
            "started": me.started if me else 0,
            "ports": ports,
        }
        work = self.path.with_suffix(".new")
        work.write_text(json.dumps(state))
        work.replace(self.path)

    def remove(self) -> None:
        """Says that nothing runs."""
        self.path.unlink(missing_ok=True)

    def end_leftovers(self) -> None:
        """Ends what a killed `start` left behind."""
        state = self.read()
        if state is None:
            return
        if ended := end_run(state["run_id"], timeout_s=STOP_S):
            say(f"ended {ended} processes that an earlier run had left behind")
        self.remove()


def create_environment(run_id: str) -> dict[str, str]:
    """Returns the environment for `serve run`; what the user has set wins over configs/ray.env."""
    defaults = {
        **read_environment_file(RAY_ENV),
        "TRUTHGPT_CONFIG_DIR": str(ROOT / "configs"),
        BINARY_VARIABLE: str(program_path()),
    }
    return {**defaults, **os.environ, **create_run_environment(run_id)}


class Service:
    """One `serve run` and everything beneath it."""

    def __init__(self, config: Path, run_file: RunFile) -> None:
        self.host, self.port = read_address(config)
        self.run_id = create_run_id()
        self.environment = create_environment(self.run_id)
        self.config = config
        self._run_file = run_file
        self._interrupts = 0

    @property
    def address(self) -> str:
        """Where a client on this machine reaches the service."""
        host = "127.0.0.1" if self.host in ("", "0.0.0.0", "::") else self.host
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    def ports(self) -> dict[str, int]:
        """Returns the ports that the proxies take, each under the name of what moves it."""
        env = self.environment
        others = {name: int(env.get(name, port)) for name, port in PROXY_PORTS.items()}
        return {f"http_options.port in {self.config}": self.port, **others}

    def run(self) -> int:
        """Serves until it is interrupted or `serve run` ends; returns the exit status."""
        for number in ENDING_SIGNALS:
            signal.signal(number, self._interrupt)
        # A session of its own: the terminal's Ctrl-C comes to this process only, which passes it
        # on to the one that must see it first.
        child = subprocess.Popen(
            # -P: what lies beside the program is not for the models to import.
            [sys.executable, "-P", str(RUNNER), str(self.config), self.address],
            env=self.environment,
            start_new_session=True,
        )
        try:
            self._wait(child)
        finally:
            self._end(child)
        return 0 if self._interrupts else (child.returncode or 1)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self._interrupts += 1

    def _wait(self, child: subprocess.Popen[bytes]) -> None:
        started = time.monotonic()
        ready = False
        while child.poll() is None and not self._interrupts:
            if not ready and self._is_ready():
                ready = True
                say(f"ready after {time.monotonic() - started:.1f} s: {self.address}")
            time.sleep(0.2)

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.address}/ready", timeout=1):
                return True
        except (OSError, HTTPException):
            return False

    def _end(self, child: subprocess.Popen[bytes]) -> None:
        present = find_run(self.run_id)
        leader = read_process(child.pid)
        if leader is not None:
            say("stopping (again: without waiting for running requests)")
            send_signal(leader, signal.SIGINT)
            deadline = time.monotonic() + GRACE_S
            while child.poll() is None and self._interrupts < 2 and time.monotonic() < deadline:
                time.sleep(0.1)
        end_run(self.run_id, timeout_s=STOP_S, known=present)
        child.wait(timeout=5)
        self._run_file.remove()
        say("stopped")


def start(config: Path, run_file: RunFile) -> int:
    """Serves in the foreground."""
    lock = run_file.lock()
    if lock is None:
        state = run_file.read() or {"pid": "?", "ports": ["?"]}
        say(
            f"already running as process {state['pid']} on port {state['ports'][0]}: "
            "`make stop` ends it"
        )
        return 1
    with lock:
        run_file.end_leftovers()
        service = Service(config, run_file)
        taken = [
            f"port {port} is taken by another program: end it, or change {setting}"
            for setting, port in service.ports().items()
            if (is_answered(port) if setting == SHARED_PORT else busy_ports("0.0.0.0", [port]))
        ]
        for line in taken:
            say(line)
        if taken:
            return 1
        run_file.write(service.run_id, list(service.ports().values()))
        try:
            return service.run()
        finally:
            run_file.remove()


def stop(run_file: RunFile) -> int:
    """Ends what `start` started, from any shell; does nothing when nothing runs."""
    state = run_file.read()
    if state is None:
        say("nothing is running")
        return 0
    runner = read_process(state["pid"])
    if runner is not None and runner.started == state["started"]:
        say(f"stopping process {runner.pid} and all beneath it")
        send_signal(runner, signal.SIGTERM)
        wait_for_runner(runner)
    if ended := end_run(state["run_id"], timeout_s=STOP_S):
        say(f"ended {ended} processes")
    run_file.remove()
    busy = wait_for_ports("0.0.0.0", state["ports"], timeout_s=10)
    if busy:
        say(f"ports {busy} are still taken, by a program that this service did not start")
        return 1
    say("stopped")
    return 0


def wait_for_runner(runner: Process) -> None:
    """Waits until the foreground process has ended its run, or its time is over."""
    deadline = time.monotonic() + GRACE_S + STOP_S
    while time.monotonic() < deadline:
        present = read_process(runner.pid)
        if present is None or present.started != runner.started:
            return
        time.sleep(0.1)
    send_signal(runner, signal.SIGKILL)


def status(run_file: RunFile) -> int:
    """Prints what runs; the exit status is 0 when something does."""
    state = run_file.read()
    processes = find_run(state["run_id"]) if state else []
    for process in processes:
        print(f"{process.pid:>8}  {process.command[:90]}")
    say(f"{len(processes)} processes are running")
    return 0 if processes else 1


def main() -> int:
    """Command line: `serve.py start|stop|status [--config FILE] [--run-dir FOLDER]`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("command", choices=("start", "stop", "status"))
    parser.add_argument("--config", type=Path, default=Path("configs/serve.yaml"))
    parser.add_argument("--run-dir", type=Path, default=ROOT / ".run")
    options = parser.parse_args()
    folder = RunFile(options.run_dir)
    if options.command == "start":
        return start(options.config, folder)
    return {"stop": stop, "status": status}[options.command](folder)


if __name__ == "__main__":
    sys.exit(main())
