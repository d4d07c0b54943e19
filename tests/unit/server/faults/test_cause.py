"""The cause that a death leaves."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from truthgpt_serve.server.faults.history import History

CHILD = """
import os, signal, sys, time, faulthandler, ctypes
from pathlib import Path
from truthgpt_serve.server.faults import guard
from truthgpt_serve.server.faults.cause import count_oom_kills
from truthgpt_serve.server.faults.card import CardWithDeath
from truthgpt_serve.server.faults.history import History
from truthgpt_serve.server.faults.record import Record
folder, how, phase, fingerprint = Path(sys.argv[1]), *sys.argv[2:]
faulthandler.enable()
record = Record(History(folder, "v").folder, phase=phase, version="v",
                stderr=os.readlink("/proc/self/fd/2"), oom_kills=count_oom_kills())
guard._note_exits(record)
record.begin(bytes.fromhex(fingerprint))
done = record.begin(bytes.fromhex("ee" * 16)); record.end(done)
if how == "segfault":
    def crash_here(): ctypes.string_at(0)
    crash_here()
elif how == "exit": os._exit(3)
elif how == "kill": os.kill(os.getpid(), signal.SIGKILL)
elif how == "abort": os.abort()
elif how == "good": record.close()
"""


FINGERPRINT = bytes(range(16))


def run_child(folder: Path, how: str, phase: str = "serving") -> None:
    stderr = folder.parent / f"{how}-{time.time_ns()}.err"
    with stderr.open("wb") as output:
        subprocess.run(
            [sys.executable, "-c", textwrap.dedent(CHILD), folder, how, phase, FINGERPRINT.hex()],
            stderr=output,
            timeout=60,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )


@pytest.fixture
def history(tmp_path: Path) -> History:
    return History(tmp_path / "deaths", "v")


@pytest.mark.parametrize(
    ("how", "cause"),
    [
        ("segfault", r"SIGSEGV \(signal 11.*crash_here|string_at"),
        ("abort", r"SIGABRT \(signal 6"),
        ("exit", "exit code 3"),
        ("kill", r"SIGKILL \(signal 9"),
    ],
)
def test_a_death_leaves_its_cause_and_what_was_in_flight(
    history: History, how: str, cause: str
) -> None:
    run_child(history.folder, how)
    history.take_in()
    (death,) = history.deaths()
    assert death.phase == "serving"
    assert re.search(cause, death.cause), death.cause
    assert history.strikes(FINGERPRINT) == 1
    assert history.strikes(bytes.fromhex("ee" * 16)) == 0, "it had been answered"
    history.take_in()
    assert len(history.deaths()) == 1
    assert not list(history.folder.glob("*.record"))


def test_an_end_in_good_order_is_no_death(history: History) -> None:
    run_child(history.folder, "good")
    history.take_in()
    assert history.deaths() == []
    assert history.strikes(FINGERPRINT) == 0


def test_a_death_with_another_configuration_says_nothing(history: History) -> None:
    run_child(history.folder, "kill")
    other = History(history.folder, "another")
    other.take_in()
    assert other.deaths() == []
    assert other.strikes(FINGERPRINT) == 0
