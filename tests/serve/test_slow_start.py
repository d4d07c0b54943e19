"""A start on a machine that is slow, or that fails at first, ends in a service that is ready."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serve.shell import STOP_S, Shell, assert_nothing_is_left, echo_config, open_shell

SLOW = """
import sys, time
command = " ".join(sys.orig_argv)
if "/dashboard/agent.py" in command and "/raylet/" not in command:
    time.sleep(20)  # the raylet waits 15 s for its port, by itself
elif "/default_worker.py" in command and "/raylet/" not in command:
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


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    with open_shell(tmp_path, echo_config()) as shell:
        modules = tmp_path / "modules"
        modules.mkdir()
        shell.environment["PYTHONPATH"] = os.pathsep.join(
            [str(modules), os.environ.get("PYTHONPATH", "")]
        )
        yield shell


def test_slow_processes_of_ray_are_waited_for(shell: Shell) -> None:
    (shell.folder / "modules" / "sitecustomize.py").write_text(SLOW)
    service = shell.start()
    run_id = shell.run_id
    log = shell.log.read_text()
    service.send_signal(signal.SIGINT)
    assert service.wait(STOP_S) == 0, shell.log.read_text()
    assert "starting again" not in log
    assert_nothing_is_left(shell, run_id)


def test_a_start_that_fails_is_tried_again(shell: Shell) -> None:
    text = BROKEN.format(tried=str(shell.folder / "tried"))
    (shell.folder / "modules" / "sitecustomize.py").write_text(text)
    service = shell.start()
    run_id = shell.run_id
    log = shell.log.read_text()
    service.send_signal(signal.SIGINT)
    assert service.wait(STOP_S) == 0, shell.log.read_text()
    assert "[serve] the start failed: `serve run` ended with status 1" in log
    assert "[serve] starting again in 1 s; 3 tries left" in log
    strange = [line for line in log.splitlines() if not line.startswith(("[serve] ", "  ", "Try:"))]
    assert strange == []
    assert_nothing_is_left(shell, run_id)
