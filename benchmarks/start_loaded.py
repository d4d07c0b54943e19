"""Starts the service again and again while the machine is busy with something else.

Command: `python -m benchmarks.start_loaded --tries 10 --busy 8`. Each try runs the program of
`make serve`, with ports of its own, until it is ready, and stops it. A start that failed and that
the program itself tried again is counted. Exits with 1 if a try did not end in a ready service, or
left a process behind.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml

from benchmarks.sides import ROOT
from truthgpt_serve.cluster.ports import free_port
from truthgpt_serve.cluster.processes import RUN_ID_VARIABLE, end_run, find_run

READY = "[serve] ready after"
AGAIN = "[serve] starting again"
STOP_TIMEOUT_S = 120.0
PORTS = ("RAY_SERVE_FALLBACK_PROXY_HTTP_PORT",)


@dataclass(frozen=True, slots=True)
class Try:
    """One start.

    Attributes:
        ready_s: Seconds until the service was ready, or None.
        failures: How often the program had to start again.
        left: Processes that were there after the stop.
        load: The machine's load average at the end.
    """

    ready_s: float | None
    failures: int
    left: int
    load: float


@contextmanager
def busy_processes(number: int) -> Iterator[None]:
    """Runs this many processes that do nothing but use a core each."""
    command = [sys.executable, "-c", "while True: pass"]
    processes = [subprocess.Popen(command) for _ in range(number)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def start_once(config: Path, folder: Path, timeout_s: float) -> Try:
    """Starts the service once, and stops it."""
    log_path = folder / "serve.log"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    environment |= {name: str(free_port()) for name in PORTS}
    environment.pop(RUN_ID_VARIABLE, None)
    command = [sys.executable, str(ROOT / "scripts" / "serve.py"), "start"]
    command += ["--config", str(config), "--run-dir", str(folder)]
    with log_path.open("wb") as log:
        started_s = time.monotonic()
        service = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=log, stderr=log)
    run_id, ready_s = "", None
    try:
        while service.poll() is None and time.monotonic() - started_s < timeout_s:
            if not run_id and (folder / "serve.json").exists():
                run_id = json.loads((folder / "serve.json").read_text())["run_id"]
            if READY in log_path.read_text(errors="replace"):
                ready_s = round(time.monotonic() - started_s, 1)
                break
            time.sleep(0.2)
        load = round(os.getloadavg()[0], 1)
    finally:
        if service.poll() is None:
            service.send_signal(signal.SIGINT)
        try:
            service.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            service.kill()
            service.wait()
    left = len(find_run(run_id)) if run_id else 0
    if left:
        end_run(run_id, timeout_s=STOP_TIMEOUT_S)
    text = log_path.read_text(errors="replace")
    if ready_s is None:
        print(text[-6000:], file=sys.stderr)
    return Try(ready_s, text.count(AGAIN), left, load)


def write_config(config: Path, folder: Path) -> Path:
    """Writes the Serve file with a port of its own."""
    data = yaml.safe_load(config.read_text())
    data["http_options"] = {**(data.get("http_options") or {}), "port": free_port()}
    path = folder / "serve.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def main() -> int:
    """Runs all tries; prints one line for each and a JSON summary."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "serve.yaml")
    parser.add_argument("--tries", type=int, default=10)
    parser.add_argument("--busy", type=int, default=8)
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds for one start")
    options = parser.parse_args()
    tries = []
    with busy_processes(options.busy):
        for number in range(options.tries):
            with tempfile.TemporaryDirectory(prefix="tg") as name:
                folder = Path(name)
                found = start_once(write_config(options.config, folder), folder, options.timeout)
            print(number + 1, asdict(found), flush=True)
            tries.append(found)
    ready = [found.ready_s for found in tries if found.ready_s is not None]
    summary = {
        "tries": len(tries),
        "ready": len(ready),
        "started again": sum(found.failures for found in tries),
        "seconds": sorted(ready),
        "processes left": sum(found.left for found in tries),
    }
    print(json.dumps(summary))
    return 0 if len(ready) == len(tries) and not summary["processes left"] else 1


if __name__ == "__main__":
    sys.exit(main())
