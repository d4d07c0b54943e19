"""The supervisor starts its command again, gives up in the end, and leaves no process."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from truthgpt_serve.cluster.ports import free_port
from truthgpt_serve.cluster.processes import create_run_environment, create_run_id, find_run
from truthgpt_serve.cluster.service import parts, retries, supervisor
from truthgpt_serve.cluster.service.parts import Part, Remedy, Watch
from truthgpt_serve.cluster.service.screen import Screen
from truthgpt_serve.cluster.service.service_log import ServiceLog
from truthgpt_serve.cluster.service.supervisor import Supervisor

LIMIT_S = 60


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in supervisor.ENDING_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def create(program: str, folder: Path, *, run_id: str, busy: list[str] | None = None) -> Supervisor:
    environment = {**os.environ, **create_run_environment(run_id)}
    address = f"http://127.0.0.1:{free_port()}"
    command = [sys.executable, "-c", program]
    screen = Screen(ServiceLog(folder), address, ["m"])
    return Supervisor(command, environment, run_id, address, lambda: busy or [], screen)


def test_it_gives_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(retries, "DELAYS_S", (0.0, 0.1, 0.2))
    starts = tmp_path / "starts"
    program = f"""
import subprocess, sys
open({str(starts)!r}, "a").write("x")
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"], start_new_session=True)
sys.exit(0)
"""
    run_id = create_run_id()
    assert create(program, tmp_path, run_id=run_id).run() == 1
    assert starts.read_text() == "x" * (retries.MAX_FAILURES + 1)
    assert find_run(run_id) == []
    lines = capsys.readouterr().out.splitlines()
    assert sum("the start failed: `serve run` ended with status 0" in line for line in lines) == 4
    assert lines[-1].startswith("[serve] giving up after 4 failures")


def test_a_wrong_file_is_not_tried_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = "import sys; print('noise'); print('fault: x.yaml:3: y'); sys.exit(2)"
    assert create(program, tmp_path, run_id=create_run_id()).run() == 2
    assert capsys.readouterr().out == "fault: x.yaml:3: y\n[serve] stopped\n"


def test_a_failed_start_shows_the_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(retries, "MAX_FAILURES", 0)
    program = "print('noise\\n' * 500); raise OSError(28, 'No space left on device')"
    assert create(program, tmp_path, run_id=create_run_id()).run() == 1
    out = capsys.readouterr().out
    assert "    OSError: [Errno 28] No space left on device\n[serve] the disk is full" in out
    assert out.count("noise") < 12
    assert f"all output: {tmp_path / 'service.log'}" in out


@pytest.mark.long("waits for limits of time")
@pytest.mark.parametrize("busy", [[], ["port 1 is taken"]])
def test_an_interrupt_before_the_next_try(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    busy: list[str],
) -> None:
    monkeypatch.setattr(retries, "DELAYS_S", (0.0 if busy else 300.0,) * 3)
    timer = threading.Timer(2, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    started_s = time.monotonic()
    created = create("import sys; sys.exit(1)", tmp_path, run_id=create_run_id(), busy=busy)
    assert created.run() == 0
    assert time.monotonic() - started_s < LIMIT_S
    assert capsys.readouterr().out.endswith("[serve] stopped\n")


def wait_for(watch: Watch, text: str) -> parts.Event:
    deadline = time.monotonic() + LIMIT_S
    while True:
        for event in watch.look():
            if text in event.text:
                return event
        assert time.monotonic() < deadline, text
        time.sleep(0.02)


def test_parts_are_run_again_waited_for_or_fatal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "SCAN_PERIOD_S", 0.05)
    monkeypatch.setattr(parts, "DELAYS_S", (0.0, 0.1))
    remedies = {"again": Remedy.RUN_AGAIN, "waited": Remedy.WAIT, "fatal": Remedy.RESTART}
    found = tuple(Part(name, (f"/{name}.py",), remedy) for name, remedy in remedies.items())
    monkeypatch.setattr(parts, "PARTS", found)
    run_id = create_run_id()
    environment = {**os.environ, **create_run_environment(run_id), "OF_THE_PART": "1"}
    for name in remedies:
        (tmp_path / f"{name}.py").write_text(
            "import os, time\nassert os.environ['OF_THE_PART']\ntime.sleep(300)\n"
        )

    def start(name: str) -> int:
        program = str(tmp_path / f"{name}.py")
        return os.spawnve(os.P_NOWAIT, sys.executable, [sys.executable, program], environment)

    def kill(name: str) -> None:
        (pid,) = (
            process.pid for process in find_run(run_id) if process.command.endswith(f"{name}.py")
        )
        os.kill(pid, signal.SIGKILL)

    pids = {name: start(name) for name in remedies}
    watch = Watch(run_id, return_s=1.0)
    try:
        deadline = time.monotonic() + LIMIT_S
        while len(watch.seen()) < len(pids):
            assert time.monotonic() < deadline
            assert watch.look() == []
            time.sleep(0.02)
        for _ in parts.DELAYS_S:
            kill("again")
            assert not wait_for(watch, "again (process").fatal
            wait_for(watch, "again is back after")
        kill("again")
        assert "died 3 times: it stays away" in wait_for(watch, "again (process").text

        os.kill(pids["waited"], signal.SIGKILL)
        assert not wait_for(watch, f"waited (process {pids['waited']}) died").fatal
        start("waited")
        wait_for(watch, "waited is back after")
        kill("waited")
        assert wait_for(watch, "waited is not back after 1 s").fatal

        os.kill(pids["fatal"], signal.SIGKILL)
        assert wait_for(watch, f"fatal (process {pids['fatal']}) died").fatal
    finally:
        for process in find_run(run_id):
            os.kill(process.pid, signal.SIGKILL)
