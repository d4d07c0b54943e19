"""Programs that ask to be forked as Ray's workers do, and say what they then are."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from truthgpt_serve.cluster.service.fork_client import (
    FOLDER_VARIABLE,
    FORKS_VARIABLE,
    RAYLET_VARIABLE,
)

PROGRAM = """
import ctypes, gc, json, os, random, signal, sys, tempfile, time, uuid
from truthgpt_serve.cluster.service import fork_client, fork_loading, fork_server
from truthgpt_serve.cluster.service.fork_client import SERVER_OPTION, ask_for_copy
from truthgpt_serve.cluster.service.ray_worker import change_imports

fork_client.LOAD_TIMEOUT_S = float(os.environ.get("LOAD_TIMEOUT_S", "100"))
fork_client.READY_TIMEOUT_S = float(os.environ.get("READY_TIMEOUT_S", "100"))
fork_client.FORK_TIMEOUT_S = float(os.environ.get("FORK_TIMEOUT_S", "100"))
fork_server.GO_TIMEOUT_S = float(os.environ.get("GO_TIMEOUT_S", "100"))
strikes = [argument.split("=")[1] for argument in sys.argv if argument.startswith("--strike=")]
for strike in strikes:  # between the greeting and the request
    def strike_first(arguments, make=fork_client.ForkRequest.of_this_process):
        os.kill(*map(int, strike.split(":")))
        return make(arguments)

    fork_client.ForkRequest.of_this_process = strike_first
request, server, began_s = None, None, time.monotonic()
if sys.argv[1:2] == [SERVER_OPTION]:
    change_imports()
    request = fork_server.run(int(sys.argv[2]), int(sys.argv[3]))
    server = os.getppid()
    if request is None:
        sys.exit()
elif ask_for_copy(sys.argv):
    sys.exit()
asked_s = time.monotonic() - began_s

def is_open(file):
    try:
        return os.fstat(file) is not None
    except OSError:
        return False

files = [file for file in range(256) if is_open(file)]
signals = {number: str(signal.getsignal(number)) for number in sorted(signal.valid_signals())}
masked = sorted(signal.pthread_sigmask(signal.SIG_BLOCK, []))
loaded = request is not None and all(name in sys.modules for name in fork_loading.MODULES)
heavy = [name for name in ("pandas", "torch") if name in sys.modules]
gc.unfreeze()
generators = [found for found in gc.get_objects() if type(found) is random.Random]
import numpy, ray, ray._private.utils
ray._private.utils.set_omp_num_threads_if_unset()  # what Ray calls before each actor
(blas,) = {line.split()[-1] for line in open("/proc/self/maps") if "openblas" in line}
drawn = [
    ray.WorkerID.from_random().hex(),
    random.random(),
    str(uuid.uuid4()),
    next(tempfile._get_candidate_names()),
    numpy.random.random(),
    numpy.random.default_rng().random(),
    os.urandom(8).hex(),
    *[generator.random() for generator in generators],
]
told = {
    "asked_s": asked_s,
    "drawn": drawn,
    "arguments": sys.argv[1:] if request is None else request.arguments[1:],
    "job": os.environ.get("RAY_JOB_ID"),
    "leads": os.getpgid(0) == os.getpid(),
    "pid": os.getpid(),
    "server": server,
    "loaded": loaded,
    "heavy": heavy,
    "files": files,
    "signals": signals,
    "masked": masked,
    "blas threads": ctypes.CDLL(blas).scipy_openblas_get_num_threads64_(),
    "score": open("/proc/self/oom_score_adj").read().strip(),
}
print(json.dumps(told), flush=True)
while "--linger" in sys.argv and os.path.exists("linger"):
    time.sleep(0.05)
sys.exit(0 if request is not None else 3)
"""
TIMEOUT_S = 120


class Worker:
    """Runs the program as a child of one process, which stands for the raylet.

    Args:
        folder: An empty one.
        variables: Of all programs and of the server.
    """

    def __init__(self, folder: Path, **variables: str) -> None:
        self.folder = folder
        self._program = folder / "worker.py"
        self._program.write_text(PROGRAM)
        inherited = {k: v for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST"}
        own = {FORKS_VARIABLE: "1", FOLDER_VARIABLE: str(folder), RAYLET_VARIABLE: str(os.getpid())}
        self.environment = {**inherited, **own, **variables}
        self.number = 0

    def run(
        self,
        *arguments: str,
        below: Sequence[str] = (),
        python: str = sys.executable,
        **variables: str,
    ) -> tuple[int, Any]:
        """Returns the status of the program that asked, and what it or its copy wrote."""
        self.number += 1
        output = self.folder / f"output-{self.number}"
        with output.open("wb") as file:
            status = subprocess.run(
                [*below, python, str(self._program), *arguments],
                env={**self.environment, **variables},
                cwd=self.folder,
                stdout=file,
                timeout=TIMEOUT_S,
            ).returncode
        wait_for(lambda: output.read_text().endswith("\n"))
        return status, json.loads(output.read_text())

    def run_until_copied(self) -> Any:
        """Runs it again and again, and returns what the first copy wrote."""
        found: list[Any] = []

        def is_copied() -> bool:
            status, told = self.run()
            found.append(told)
            return status == 0

        wait_for(is_copied)
        return found[-1]

    def sockets(self) -> set[Path]:
        """Returns where servers listen, or have listened."""
        return {*self.folder.glob("workers-*.sock")}

    def processes(self, *words: str) -> list[int]:
        """Returns the processes that run the program, with these among their arguments."""
        found = psutil.process_iter(["cmdline"])
        needed = {str(self._program), *words}
        return [one.pid for one in found if needed <= {*(one.info["cmdline"] or [])}]

    def end(self) -> None:
        """Ends the server, and copies."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not self.processes())


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
