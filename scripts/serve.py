"""Starts the service in the foreground, and stops all of it: `serve.py start`, `serve.py stop`.

Knows the command line and the ports; `truthgpt_serve.cluster` starts, follows and ends what runs.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import yaml

from truthgpt_serve.cluster.defaults import DEFAULT_PORT
from truthgpt_serve.cluster.environment_file import (
    ENVIRONMENT_FILE,
    read_environment_file,
    write_exports,
)
from truthgpt_serve.cluster.haproxy.program import BINARY_VARIABLE, program_path
from truthgpt_serve.cluster.ports import busy_ports, is_answered, wait_for_ports
from truthgpt_serve.cluster.private_files import (
    LOOPBACK_ONLY,
    find_private_folder,
    private_environment,
    write_token,
)
from truthgpt_serve.cluster.processes import (
    Process,
    create_run_environment,
    create_run_id,
    end_run,
    find_run,
    is_alive,
    read_process,
    send_signal,
)
from truthgpt_serve.cluster.service.console import say
from truthgpt_serve.cluster.service.leftovers import tidy
from truthgpt_serve.cluster.service.run_file import STOP_S, RunFile
from truthgpt_serve.cluster.service.screen import Screen
from truthgpt_serve.cluster.service.service_log import ServiceLog
from truthgpt_serve.cluster.service.supervisor import GRACE_S, Supervisor

ROOT = Path(__file__).resolve().parent.parent
RAY_ENV = ROOT / "configs" / "ray.env"
RUNNER = ROOT / "scripts" / "serve_run.py"
PROXY_PORTS = {"RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": 8500}
"""Ports that the proxies take beside the service's own, by the variable that moves them."""
SHARED_PORT = "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT"
"""Where HAProxy sends what has no replica: a second service would listen there without an error and
answer for the first. On what its last connections left behind it listens without one too."""


def read_address(config: Path) -> tuple[str, int]:
    """Returns the host and port that the Serve file listens on."""
    options = (yaml.safe_load(config.read_text()) or {}).get("http_options") or {}
    return options.get("host", "127.0.0.1"), int(options.get("port", DEFAULT_PORT))


def create_environment(run_id: str, run_folder: Path) -> dict[str, str]:
    """Returns the environment for `serve run`; what the user has set wins over configs/ray.env.

    Writes a token for the run, and the file `environment` by which a shell joins it.
    """
    private = find_private_folder(run_folder)
    tidy(private)
    defaults = {
        **read_environment_file(RAY_ENV),
        **private_environment(private, write_token(run_folder)),
        **LOOPBACK_ONLY,
        "TRUTHGPT_CONFIG_DIR": str(ROOT / "configs"),
        BINARY_VARIABLE: str(program_path()),
    }
    set_by_user = {name: os.environ.get(name, value) for name, value in defaults.items()}
    write_exports(run_folder / ENVIRONMENT_FILE, set_by_user)
    return {**defaults, **os.environ, **create_run_environment(run_id)}


def find_ports(config: Path, environment: Mapping[str, str]) -> dict[str, int]:
    """Returns the ports that the proxies take, each under the name of what moves it."""
    others = {name: int(environment.get(name, port)) for name, port in PROXY_PORTS.items()}
    return {f"http_options.port in {config}": read_address(config)[1], **others}


def find_taken(ports: Mapping[str, int]) -> list[str]:
    """Returns a line for each port on which another program listens."""
    return [
        f"port {port} is taken by another program: end it, or change {setting}"
        for setting, port in ports.items()
        if (is_answered(port) if setting == SHARED_PORT else busy_ports("0.0.0.0", [port]))
    ]


def client_address(config: Path) -> str:
    """Returns where a client on this machine reaches the service."""
    host, port = read_address(config)
    host = "127.0.0.1" if host in ("", "0.0.0.0", "::") else host
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def read_names(config: Path) -> tuple[list[str], bool]:
    """Returns the models' names, and whether there is a playground.

    As far as the file can be read: the check says what is wrong.
    """
    try:
        applications = yaml.safe_load(config.read_text())["applications"]
        kinds = {str(one["name"]): one["import_path"].rpartition(":")[2] for one in applications}
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError):
        return [], False
    names = [name for name, kind in kinds.items() if kind not in ("router", "playground")]
    return names, "playground" in kinds.values()


def start(config: Path, run_file: RunFile, *, verbose: bool) -> int:
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
        run_id = create_run_id()
        environment = create_environment(run_id, run_file.path.parent)
        ports = find_ports(config, environment)
        taken = find_taken(ports)
        for line in taken:
            say(line)
        if taken:
            return 1
        address = client_address(config)
        run_file.write(run_id, list(ports.values()), address)
        # -P: what lies beside the program is not for the models to import.
        command = [sys.executable, "-P", str(RUNNER), str(config), address]
        log = ServiceLog(run_file.path.parent)
        names, playground = read_names(config)
        screen = Screen(log, address, names, playground=playground, verbose=verbose)
        try:
            return Supervisor(
                command, environment, run_id, address, lambda: find_taken(ports), screen
            ).run()
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
        if not is_alive(runner):
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
    """Command line: `serve.py start|stop|status [--config FILE] [--run-dir FOLDER] [--verbose]`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("command", choices=("start", "stop", "status"))
    parser.add_argument("--config", type=Path, default=Path("configs/serve.yaml"))
    parser.add_argument("--run-dir", type=Path, default=ROOT / ".run")
    parser.add_argument("--verbose", action="store_true", help="show all output of the service")
    options = parser.parse_args()
    folder = RunFile(options.run_dir)
    if options.command == "start":
        return start(options.config, folder, verbose=options.verbose)
    return {"stop": stop, "status": status}[options.command](folder)


if __name__ == "__main__":
    sys.exit(main())
