from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from truthgpt_serve.training.run_folder import STOP
from truthgpt_serve.training.stopping import EXIT_STOPPED, stopping_by_signal

PROGRAM = """
import sys, time
from pathlib import Path
from truthgpt_serve.training.stopping import stopping_by_signal
with stopping_by_signal(Path(sys.argv[1])):
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_to_stop_and_the_second_ends_at_once(
    number: signal.Signals, tmp_path: Path
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "ready\n"
        assert not (tmp_path / STOP).exists()
        process.send_signal(number)
        process.stderr.readline()
        assert "saving a checkpoint after this step" in process.stderr.readline()
        assert (tmp_path / STOP).exists()
        assert process.poll() is None
        process.send_signal(number)
        assert process.wait(20) == EXIT_STOPPED


def test_what_signals_did_before_they_do_again(tmp_path: Path) -> None:
    (tmp_path / STOP).touch()  # a run that was ended at once has left it
    before = signal.getsignal(signal.SIGINT)
    with stopping_by_signal(tmp_path):
        assert not (tmp_path / STOP).exists()
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before
