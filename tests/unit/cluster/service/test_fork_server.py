"""Workers as copies of a loaded process, which a program of this test asks for as Ray's would."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from tests.support.fork_workers import TIMEOUT_S, Worker, wait_for
from truthgpt_serve.cluster.processes import read_process
from truthgpt_serve.cluster.service.fork_client import (
    FORKS_VARIABLE,
    RAYLET_VARIABLE,
    SERVER_OPTION,
)
from truthgpt_serve.cluster.service.fork_request import ANSWER_BYTES, GREETING, ForkRequest

LONG_S = 6
"""Limits that tests wait for; more than what is waited for a process that was too slow."""


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    before = {child.pid for child in psutil.Process().children()}
    worker = Worker(tmp_path_factory.mktemp("workers"))
    yield worker
    worker.end()
    assert {child.pid for child in psutil.Process().children()} <= before


@pytest.fixture
def lone(tmp_path: Path) -> Iterator[Worker]:
    """Programs with short limits, whose server has not been started."""
    names = ("LOAD_TIMEOUT_S", "READY_TIMEOUT_S", "FORK_TIMEOUT_S", "GO_TIMEOUT_S")
    worker = Worker(tmp_path, **dict.fromkeys(names, str(LONG_S)))
    yield worker
    worker.end()


def wait_for_end(pid: int) -> None:
    wait_for(lambda: read_process(pid) is None)


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
        assert told["heavy"] == []
        assert told["leads"]
        assert told["score"] == Path("/proc/self/oom_score_adj").read_text().strip()
    for one, other in zip(first["drawn"], second["drawn"], strict=True):
        assert one != other


def test_a_copy_has_the_files_and_signals_of_a_program_of_its_own(worker: Worker) -> None:
    status, copy = worker.run()
    assert status == 0
    status, plain = worker.run(**{FORKS_VARIABLE: "0"})
    assert status == 3
    for name in ("files", "signals", "masked"):
        assert copy[name] == plain[name]
    assert copy["files"] == [0, 1, 2]


def test_numpy_has_the_threads_that_the_variables_say(tmp_path: Path) -> None:
    worker = Worker(tmp_path, OMP_NUM_THREADS="3")
    try:
        assert worker.run_until_copied()["blas threads"] == 3
    finally:
        worker.end()


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


@pytest.mark.long("waits for limits of time")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_server_that_is_lost_while_it_loads(lone: Worker, how: signal.Signals) -> None:
    lingers, output = lone.folder / "linger", lone.folder / "output-1"
    lingers.touch()  # the kernel continues what has stopped when its parent ends
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(lone.run, "--linger")
        wait_for(lambda: bool(lone.processes(SERVER_OPTION)))
        (server,) = lone.processes(SERVER_OPTION)
        os.kill(server, how)
        wait_for(lambda: output.read_text().endswith("\n"))
        if how == signal.SIGSTOP:
            for _ in range(2):
                status, told = lone.run()
                assert status == 3
                assert told["asked_s"] < LONG_S  # the first one has waited for longer
            os.kill(server, signal.SIGCONT)
        lingers.unlink()
        assert first.result(TIMEOUT_S)[0] == 3
    assert (lone.run_until_copied()["server"] == server) == (how == signal.SIGSTOP)


@pytest.mark.long("waits for limits of time")
def test_a_server_that_stops_is_not_waited_for_as_one_that_loads(tmp_path: Path) -> None:
    worker = Worker(tmp_path, READY_TIMEOUT_S="1")
    try:
        server = worker.run_until_copied()["server"]
        os.kill(server, signal.SIGSTOP)
        status, told = worker.run()
        assert status == 3
        assert told["asked_s"] < 50
    finally:
        worker.end()


@pytest.mark.long("waits for limits of time")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_server_that_is_lost_before_it_forks(lone: Worker, how: signal.Signals) -> None:
    server = lone.run_until_copied()["server"]
    assert lone.run(f"--strike={server}:{int(how)}")[0] == 3
    if how == signal.SIGSTOP:
        assert lone.run()[0] == 3
        os.kill(server, signal.SIGCONT)
    assert (lone.run_until_copied()["server"] == server) == (how == signal.SIGSTOP)
    wait_for(lambda: len(lone.processes()) == 1)  # the copy for which nobody waited has ended


@pytest.mark.long("waits for limits of time")
@pytest.mark.parametrize("ends", ["program", "copy"])
def test_a_copy_that_does_not_get_on_ends(lone: Worker, ends: str) -> None:
    server = lone.run_until_copied()["server"]
    (path,) = lone.sockets()
    environment = {**lone.environment, **({"PWD": "a\0b"} if ends == "copy" else {})}
    request = ForkRequest(["worker.py"], sys.executable, environment, str(lone.folder), 0)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(TIMEOUT_S)
        connection.connect(str(path))
        assert connection.recv(len(GREETING)) == GREETING
        request.send(connection)
        copy = int.from_bytes(connection.recv(ANSWER_BYTES))
        assert bool(copy) == (ends == "program")  # which now leaves without a word
    wait_for(lambda: lone.processes() == [server])
    assert lone.run_until_copied()["server"] == server
