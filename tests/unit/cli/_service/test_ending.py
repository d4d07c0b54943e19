"""Commands end in order by the signals that end programs: what they started ends with them."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from truthgpt_serve.cli._service.ending import SIGNALS, ending_in_order

LIMIT_S = 60
PROGRAM = """
import sys, tempfile, time
from truthgpt_serve.cli._service.ending import ending_in_order

with ending_in_order():
    with tempfile.TemporaryDirectory(dir=sys.argv[1]) as folder:
        print("ready", flush=True)
        try:
            time.sleep(600)
        finally:
            time.sleep(0.5)  # a second signal does not cut what it does at its end
"""


@pytest.mark.parametrize("number", SIGNALS)
def test_temporary_folders_are_removed(tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert [*tmp_path.iterdir()]
        process.send_signal(number)
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT_S) in (128 + number, 128 + signal.SIGTERM)
    assert not [*tmp_path.iterdir()]


def test_what_is_ignored_stays_so_and_all_is_as_before() -> None:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ending_in_order():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) is not before[signal.SIGTERM]
    finally:
        signal.signal(signal.SIGHUP, before[signal.SIGHUP])
    assert {number: signal.getsignal(number) for number in SIGNALS} == before


def test_other_threads_have_no_signals() -> None:
    entered: list[bool] = []

    def enter() -> None:
        with ending_in_order():
            entered.append(True)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join(LIMIT_S)
    assert entered == [True]
