"""Workers as copies of a loaded process, which a program of this test asks for as Ray's would."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from truthgpt_serve.cluster.processes import read_process
from truthgpt_serve.cluster.service.fork_client import (
    FOLDER_VARIABLE,
    FORKS_VARIABLE,
    RAYLET_VARIABLE,
)

PROGRAM = """
import ctypes, json, os, random, sys, uuid
from truthgpt_serve.cluster.service import fork_loading, fork_server
from truthgpt_serve.cluster.processes import read_process
from truthgpt_serve.cluster.service.fork_client import SERVER_OPTION, ask_for_copy
from truthgpt_serve.cluster.service.ray_worker import leave_out_pandas

if sys.argv[1:2] != [SERVER_OPTION]:
    sys.exit(0 if ask_for_copy(sys.argv) else 3)
leave_out_pandas()
request = fork_server.run(int(sys.argv[2]), int(sys.argv[3]))
if request is not None:
    import numpy, ray, ray._private.utils
    drawn = [ray.WorkerID.from_random().hex(), random.random(), str(uuid.uuid4())]
    drawn.append(numpy.random.random())
    ray._private.utils.set_omp_num_threads_if_unset()  # what Ray calls before each actor
    (blas,) = {line.split()[-1] for line in open("/proc/self/maps") if "openblas" in line}
    told = {
        "drawn": drawn,
        "arguments": request.arguments[1:],
        "job": os.environ.get("RAY_JOB_ID"),
        "leads": os.getpgid(0) == os.getpid(),
        "server": os.getppid(),
        "loaded": all(name in sys.modules for name in fork_loading.MODULES),
        "blas threads": ctypes.CDLL(blas).scipy_openblas_get_num_threads64_(),
        "score": open("/proc/self/oom_score_adj").read().strip(),
    }
    print(json.dumps(told), flush=True)
"""
TIMEOUT_S = 120


class Worker:
    """Runs the program as a child of one process, which stands for the raylet."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._program = folder / "worker.py"
        self._program.write_text(PROGRAM)
        self.number = 0

    def run(
        self,
        *arguments: str,
        below: Sequence[str] = (),
        python: str = sys.executable,
        **variables: str,
    ) -> tuple[int, Any]:
        """Returns the status of the program that asked, and what its copy wrote."""
        self.number += 1
        output = self._folder / f"output-{self.number}"
        inherited = {k: v for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST"}
        own = {
            FORKS_VARIABLE: "1",
            FOLDER_VARIABLE: str(self._folder),
            RAYLET_VARIABLE: str(os.getpid()),
        }
        with output.open("wb") as file:
            status = subprocess.run(
                [*below, python, str(self._program), *arguments],
                env={**inherited, **own, **variables},
                stdout=file,
                timeout=TIMEOUT_S,
            ).returncode
        deadline = time.monotonic() + TIMEOUT_S
        while status == 0 and not output.read_text().endswith("\n"):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return status, json.loads(output.read_text() or "null")

    def sockets(self) -> set[Path]:
        """Returns where servers listen, or have listened."""
        return {*self._folder.glob("workers-*")}


@contextmanager
def running(folder: Path) -> Iterator[Worker]:
    """Ends what a worker has started."""
    before = {child.pid for child in psutil.Process().children()}
    yield Worker(folder)
    for process in psutil.process_iter(["cmdline"]):
        if str(folder / "worker.py") in (process.info["cmdline"] or []):
            process.kill()
    assert {child.pid for child in psutil.Process().children()} <= before


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    with running(tmp_path_factory.mktemp("workers")) as worker:
        yield worker


def wait_for_end(pid: int) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while read_process(pid) is not None:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_copies_take_the_place_of_workers(worker: Worker) -> None:
    status, first = worker.run("--one", RAY_JOB_ID="01")
    assert status == 0
    status, second = worker.run("--two", RAY_JOB_ID="02")
    assert status == 0
    assert (first["arguments"], second["arguments"]) == (["--one"], ["--two"])
    status, third = worker.run()
    assert status == 0
    assert (first["job"], second["job"], third["job"]) == ("01", "02", None)
    assert first["server"] == second["server"] == third["server"]
    for told in (first, second):
        assert told["loaded"]
        assert told["leads"]
        assert told["score"] == Path("/proc/self/oom_score_adj").read_text().strip()
    for one, other in zip(first["drawn"], second["drawn"], strict=True):
        assert one != other


def test_numpy_has_the_threads_that_the_variables_say(tmp_path: Path) -> None:
    with running(tmp_path) as worker:
        status, told = worker.run(OMP_NUM_THREADS="3")
    assert (status, told["blas threads"]) == (0, 3)


def test_a_worker_that_would_be_another_starts_by_itself(worker: Worker) -> None:
    assert worker.run(OMP_NUM_THREADS="7")[0] == 3
    assert worker.run(**{FORKS_VARIABLE: "0"})[0] == 3


def test_a_worker_of_another_python_starts_by_itself(worker: Worker, tmp_path: Path) -> None:
    assert worker.run()[0] == 0
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.symlink_to(sys.executable)
    shutil.copy(Path(sys.prefix, "pyvenv.cfg"), tmp_path)
    (tmp_path / "lib").symlink_to(Path(sys.prefix, "lib"))
    assert worker.run(python=str(python))[0] == 3


def test_a_worker_without_its_raylet_starts_no_server(worker: Worker) -> None:
    sockets = worker.sockets()
    assert worker.run(below=["sh", "-c", '"$@"; exit $?', "another-parent"])[0] == 3
    assert worker.sockets() == sockets


def test_a_server_that_died_is_started_again(worker: Worker) -> None:
    _, first = worker.run()
    os.kill(first["server"], signal.SIGKILL)
    wait_for_end(first["server"])
    assert worker.run()[0] == 3
    status, second = worker.run()
    assert status == 0
    assert second["server"] != first["server"]


def test_a_server_ends_with_its_raylet(worker: Worker) -> None:
    status, told = worker.run(
        below=["sh", "-c", f'export {RAYLET_VARIABLE}=$$; "$@"; exit $?', "raylet"]
    )
    assert status == 0
    wait_for_end(told["server"])
