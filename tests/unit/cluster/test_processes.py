"""The run marker finds and ends processes that hide from it as Ray's and vLLM's do."""

from __future__ import annotations

import os
import platform
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from truthgpt_serve.cluster.ports import busy_ports, free_port, is_answered, wait_for_ports
from truthgpt_serve.cluster.processes import (
    create_run_environment,
    create_run_id,
    end_run,
    find_run,
    is_alive,
    read_process,
    send_signal,
)

IGNORE = "import signal; [signal.signal(n, signal.SIG_IGN) for n in (2, 15)];"
SLEEP = "import time; print('up', flush=True); time.sleep(60)"
RENAMED = f"import setproctitle; setproctitle.setproctitle('renamed ' * 50); {SLEEP}"
# Leaves a child behind that no process waits for, in a session of its own.
ORPHAN = (
    "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', sys.argv[1]], "
    "start_new_session=True, stdout=subprocess.PIPE); p.stdout.readline(); print('up', flush=True)"
)
EXIT = {"x86_64": 60, "aarch64": 93}[platform.machine()]
"""Number of the system call that ends one thread."""
# Takes a while to die, because its memory is freed first; then it closes its port.
LARGE_SERVER = (
    "import socket, sys, time; memory = b'x' * 2**29; "
    "server = socket.create_server(('127.0.0.1', int(sys.argv[1]))); "
    "print('up', flush=True); time.sleep(60)"
)
THREADED_SERVER = (
    f"import threading; threading.Thread(target=exec, args=({LARGE_SERVER!r}, {{}})).start()"
)


@pytest.fixture
def run_id() -> Iterator[str]:
    name = create_run_id()
    yield name
    end_run(name, timeout_s=10)


def launch(run_id: str, code: str, *arguments: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, **create_run_environment(run_id)}
    child = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], env=environment, stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    with child.stdout as output:
        assert output.readline() == b"up\n"
    return child


def test_finds_only_its_own_run(run_id: str) -> None:
    child = launch(run_id, SLEEP)
    assert [process.pid for process in find_run(run_id)] == [child.pid]
    assert find_run(create_run_id()) == []
    assert end_run(run_id) == 1
    assert child.wait(5) == -signal.SIGTERM


def test_finds_a_process_that_renames_itself(run_id: str) -> None:
    child = launch(run_id, RENAMED)
    (process,) = find_run(run_id)
    assert process.command.startswith("renamed renamed")
    end_run(run_id)
    child.wait(5)


def test_ends_an_orphan_in_another_session(run_id: str) -> None:
    launch(run_id, ORPHAN, SLEEP).wait(5)
    assert len(find_run(run_id)) == 1
    assert end_run(run_id) == 1
    assert find_run(run_id) == []


@pytest.mark.long("waits for limits of time")
def test_kills_what_ignores_the_other_signals(run_id: str) -> None:
    child = launch(run_id, IGNORE + SLEEP)
    leader = read_process(child.pid)
    assert end_run(run_id, leader=leader, grace_s=0.2, timeout_s=10) == 1
    assert child.wait(5) == -signal.SIGKILL


def test_the_leader_may_end_the_run_in_good_order(run_id: str) -> None:
    child = launch(run_id, SLEEP)
    began = time.monotonic()
    end_run(run_id, leader=read_process(child.pid), grace_s=20)
    assert time.monotonic() - began < 10
    assert child.wait(5) == -signal.SIGINT


@pytest.mark.parametrize("code", [LARGE_SERVER, THREADED_SERVER])
def test_ended_processes_have_closed_their_ports(run_id: str, code: str) -> None:
    port = free_port()
    child = launch(run_id, code, str(port))
    assert end_run(run_id) == 1
    assert not is_answered(port)
    child.wait(5)


@pytest.mark.parametrize("code", [LARGE_SERVER, THREADED_SERVER])
def test_a_dying_process_lives_until_it_has_closed_its_ports(run_id: str, code: str) -> None:
    port = free_port()
    child = launch(run_id, code, str(port))
    process = read_process(child.pid)
    assert process is not None
    child.kill()
    while is_alive(process):
        time.sleep(0.001)
    assert not is_answered(port)
    child.wait(5)


def test_a_process_lives_under_another_title(run_id: str) -> None:
    child = launch(run_id, RENAMED)
    process = read_process(child.pid)
    assert process is not None
    assert is_alive(replace(process, command="before"))
    assert not is_alive(replace(process, started=process.started - 1))
    child.kill()
    child.wait(5)


def test_a_process_lives_while_any_of_its_threads_does(run_id: str) -> None:
    code = (
        f"import ctypes, threading; threading.Thread(target=exec, args=({SLEEP!r}, {{}})).start(); "
        f"ctypes.CDLL(None).syscall({EXIT}, 0)"  # exit, which ends the calling thread only
    )
    child = launch(run_id, code)
    stat = Path(f"/proc/{child.pid}/stat")
    while stat.read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)
    assert read_process(child.pid) is not None
    child.kill()
    child.wait(5)
    assert read_process(child.pid) is None


def test_a_run_whose_processes_are_dying_already_is_waited_for(run_id: str) -> None:
    port = free_port()
    child = launch(run_id, LARGE_SERVER, str(port))
    present = find_run(run_id)
    child.kill()
    end_run(run_id, known=present)
    assert not is_answered(port)
    child.wait(5)


def test_ending_nothing_is_quick(run_id: str) -> None:
    began = time.monotonic()
    assert end_run(run_id, timeout_s=30) == 0
    assert time.monotonic() - began < 20


def test_a_later_process_with_the_same_pid_is_not_signaled(run_id: str) -> None:
    child = launch(run_id, SLEEP)
    process = read_process(child.pid)
    assert process is not None
    other = type(process)(process.pid, process.parent, process.started + 1, process.command)
    assert not send_signal(other, signal.SIGKILL)
    assert send_signal(process, signal.SIGKILL)
    child.wait(5)
    assert not send_signal(process, signal.SIGKILL)


def test_busy_ports() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert busy_ports("127.0.0.1", [port]) == [port]
        assert wait_for_ports("127.0.0.1", [port], timeout_s=0.1) == [port]
    assert wait_for_ports("127.0.0.1", [port], timeout_s=5) == []


def test_a_port_counts_as_answered_while_a_server_listens_there() -> None:
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as server:
        port = server.getsockname()[1]
        assert is_answered(port)
        with socket.create_connection(("127.0.0.1", port)):
            accepted, _ = server.accept()
            server.close()
            accepted.close()  # what is left of a connection whose server went first
            assert not is_answered(port)
            with socket.create_server(("127.0.0.1", port), reuse_port=True):
                assert is_answered(port)
