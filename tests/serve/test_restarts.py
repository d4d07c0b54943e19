"""`make serve` on a slow machine, after deaths and after failures ends in a service that is ready.

The tests hand one service on to each other: a start takes 15 s of a core.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.serve.shell import (
    START_S,
    STOP_S,
    Shell,
    assert_nothing_is_left,
    echo_config,
    open_shell,
)
from tests.serve.training_command import command, make_folder, wait_until_step, write_config
from tests.support.training_runs import losses
from truthgpt_serve.cluster.processes import find_run, read_arguments
from truthgpt_serve.cluster.service.parts import PARTS

READY = "[serve] ready after"
ANSWER_S = 30.0
BESIDE_S = 5
"""Ray Train looks every second whether its controller lives, and ends the run within another."""
BODY = {"model": "echo", "prompt": "a", "max_tokens": 2}
SLOW = """
import sys, time
command = " ".join(sys.orig_argv)
if "/dashboard/agent.py" in command and "/raylet/" not in command:
    time.sleep(20)  # the raylet waits 15 s for its port, by itself
elif "_worker.py" in command and "/raylet/" not in command:
    time.sleep(7)  # Serve waits 5 s for a proxy, by itself
"""
BROKEN = """
import pathlib, sys
tried = pathlib.Path({tried!r})
if "serve_run.py" in " ".join(sys.orig_argv) and not tried.exists():
    tried.touch()
    import truthgpt_serve.cluster.service.ray_limits as limits
    def fail():
        raise RuntimeError("no Ray today")
    limits.lengthen_limits = fail
"""
pytestmark = pytest.mark.timeout(900)


@dataclass
class Kept:
    """A shell, and the service that runs in it.

    Attributes:
        shell: The shell.
        modules: A folder from which each Python process of a start imports `sitecustomize`.
        service: What was started last.
    """

    shell: Shell
    modules: Path
    service: subprocess.Popen[bytes] | None = None

    @contextmanager
    def customized(self, text: str) -> Iterator[None]:
        """Has Python processes that start meanwhile run these lines first."""
        file = self.modules / "sitecustomize.py"
        file.write_text(text)
        try:
            yield
        finally:
            file.unlink()

    def start(self) -> subprocess.Popen[bytes]:
        """Starts the service, whatever runs, and waits until it is ready."""
        self.service = self.shell.start()
        return self.service

    def running(self) -> subprocess.Popen[bytes]:
        """Returns the service that runs; starts one if the test before has left none."""
        if self.service is not None and self.service.poll() is None:
            return self.service
        return self.start()

    def end(self) -> None:
        """Ends what the last test has left running."""
        self.shell.kill()
        if self.service is not None:
            self.service.wait(STOP_S)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kept]:
    modules = tmp_path_factory.mktemp("modules")
    path = os.pathsep.join([str(modules), os.environ.get("PYTHONPATH", "")])
    folder = tmp_path_factory.mktemp("restarts")
    with open_shell(folder, echo_config(), env={"PYTHONPATH": path}) as shell:
        kept = Kept(shell, modules)
        try:
            yield kept
        finally:
            kept.end()


def kill(shell: Shell, name: str) -> int:
    (part,) = (part for part in PARTS if part.name == name)
    (pid,) = (
        process.pid
        for process in find_run(shell.run_id)
        if part.is_run_by(read_arguments(process.pid))
    )
    os.kill(pid, signal.SIGKILL)
    return pid


def test_a_training_on_this_machine_goes_on_when_a_service_starts(
    kept: Kept, tmp_path: Path
) -> None:
    folder, name = make_folder(tmp_path), "beside"
    config = write_config(folder, name, training={"epochs": 10_000, "checkpoint_every": 100_000})
    run = folder / "runs" / name
    with command(folder, str(config)) as process:
        wait_until_step(process, run, 1)
        kept.start()
        time.sleep(BESIDE_S)
        wait_until_step(process, run, len(losses(run)) + 1)
        os.killpg(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=START_S)
    assert process.returncode == 130, output


def test_what_takes_the_service_along_starts_it_again(kept: Kept) -> None:
    """The second time with slow processes of Ray's, which are waited for."""
    service, shell = kept.running(), kept.shell
    url = f"http://127.0.0.1:{shell.port}/v1/completions"
    statuses = set()

    with httpx.Client(timeout=ANSWER_S) as client:

        def ask() -> None:
            """Is answered, told to come back, or refused: it never hangs."""
            try:
                answer = client.post(url, json=BODY)
            except httpx.TimeoutException:
                raise
            except httpx.TransportError:
                statuses.add(0)
                return
            statuses.add(answer.status_code)
            if answer.status_code == 503:
                assert answer.headers["retry-after"], answer.text

        for number, name in enumerate(("Ray's raylet", "Ray's GCS"), start=1):
            pid = kill(shell, name)
            died = f"[serve] {name} (process {pid}) died: the whole service starts again"
            with kept.customized(SLOW) if number == 2 else nullcontext():
                shell.wait_for(died, meanwhile=ask)
                deadline = time.monotonic() + START_S
                while shell.log.read_text().count(READY) <= number:
                    assert time.monotonic() < deadline, shell.log.read_text()
                    assert service.poll() is None, shell.log.read_text()
                    ask()
                    time.sleep(0.2)
            assert client.post(url, json=BODY).status_code == 200
    assert 0 in statuses
    assert statuses <= {0, 200, 404, 502, 503}
    assert shell.log.read_text().count(READY) == 3
    assert "the start failed" not in shell.log.read_text()


def test_a_start_ends_what_a_killed_run_left_and_is_tried_again_where_it_fails(
    kept: Kept, tmp_path: Path
) -> None:
    service, shell = kept.running(), kept.shell
    first = shell.run_id
    service.kill()
    service.wait(5)
    assert len(find_run(first)) > 5

    with kept.customized(BROKEN.format(tried=str(tmp_path / "tried"))):
        kept.start()
    assert find_run(first) == []
    log = shell.log.read_text()
    assert "that an earlier run had left behind" in log
    assert "[serve] the start failed: `serve run` ended with status 1" in log
    assert "[serve] starting again in 1 s; 3 tries left" in log
    strange = [line for line in log.splitlines() if not line.startswith(("[serve] ", "  ", "Try:"))]
    assert strange == []


def test_an_interrupt_between_two_tries_ends_everything(kept: Kept) -> None:
    service, shell = kept.running(), kept.shell
    run_id = shell.run_id
    num_ready = shell.log.read_text().count(READY)
    pid = kill(shell, "Ray's raylet")  # one of its agents takes it along, and either is seen first
    shell.wait_for(
        f"Ray's raylet (process {pid}) died: the whole service starts again",
        "[serve] starting again in ",
    )
    service.send_signal(signal.SIGINT)
    assert service.wait(STOP_S) == 0
    assert shell.log.read_text().count(READY) == num_ready
    assert_nothing_is_left(shell, run_id)


def test_a_stop_during_a_new_try_ends_it(kept: Kept, tmp_path: Path) -> None:
    shell = kept.shell
    if kept.service is not None and kept.service.poll() is None:
        shell.run("stop")
    with kept.customized(BROKEN.format(tried=str(tmp_path / "tried"))):
        kept.service = service = shell.run_in_background()
        shell.wait_for("starting again in 1 s")
        run_id = shell.run_id
        deadline = time.monotonic() + START_S
        while "Running config file" not in shell.output.read_text():
            assert time.monotonic() < deadline, shell.log.read_text()
            time.sleep(0.05)
    stopped = shell.run("stop")
    assert stopped.returncode == 0, stopped.stdout
    assert service.wait(STOP_S) == 0
    assert_nothing_is_left(shell, run_id)
