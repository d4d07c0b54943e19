"""A service that is interrupted or killed leaves nothing behind; test_readme.py has the rest."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serve.shell import STOP_S, Shell, assert_nothing_is_left, echo_config, open_shell
from truthgpt_serve.cluster.processes import find_run


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    with open_shell(tmp_path, echo_config()) as shell:
        yield shell


def test_start_ends_what_a_killed_run_left_and_interrupt_ends_everything(shell: Shell) -> None:
    service = shell.start()
    first = shell.run_id
    service.kill()
    service.wait(5)
    assert len(find_run(first)) > 5

    service = shell.start()
    assert find_run(first) == []
    assert "that an earlier run had left behind" in shell.log.read_text()
    second = shell.run_id
    service.send_signal(signal.SIGINT)
    assert service.wait(STOP_S) == 0, shell.log.read_text()
    assert_nothing_is_left(shell, second)
