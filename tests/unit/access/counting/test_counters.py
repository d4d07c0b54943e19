"""Counts that processes share: of a minute, and of what runs now."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from truthgpt_serve.access.counting import counter_file
from truthgpt_serve.access.counting.charges import WINDOW_S
from truthgpt_serve.access.counting.counter_file import (
    NUM_PROCESSES,
    REAP_S,
    SIZE,
    CounterFile,
)
from truthgpt_serve.access.counting.counters import Counters

LIMIT_S = 60
TAKE = """
import sys, time
from pathlib import Path
from truthgpt_serve.access.counting.counters import Counters

counters = Counters(Path(sys.argv[1]))
number = sum(
    not counters.take("team", 1, 100, None, time.time()).wait_s for _ in range(int(sys.argv[2]))
)
print(number, flush=True)
"""
RUN = """
import sys, time
from pathlib import Path
from truthgpt_serve.access.counting.counters import Counters

counters = Counters(Path(sys.argv[1]))
print(counters.take("team", 1, None, 2, time.time()).running, flush=True)
sys.stdin.read()
"""
HOLD = """
import fcntl, sys

file = open(sys.argv[1], "r+b")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "counters"


@pytest.fixture
def shared(path: Path) -> Iterator[Counters]:
    shared = Counters(path)
    yield shared
    shared.close()


def start(program: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", program, *(str(argument) for argument in arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.parametrize("seed", range(4))
def test_no_minute_has_more_than_the_limit_and_the_rate_is_used(
    shared: Counters, seed: int
) -> None:
    rng = random.Random(seed)
    limit, now_s, admitted = 50, 1e9 + rng.random(), deque[float]()
    for _ in range(20_000):
        now_s += rng.expovariate(5 * limit / WINDOW_S)
        if shared.take("team", 1, limit, None, now_s).wait_s:
            continue
        admitted.append(now_s)
        shared.finish("team", now_s)
    times = list(admitted)
    late = [second - first for first, second in zip(times, times[limit:], strict=False)]
    assert min(late) > WINDOW_S
    assert len(times) / (times[-1] - times[0]) > 0.97 * limit / WINDOW_S


def test_after_the_wait_it_fits_and_not_before(shared: Counters) -> None:
    now_s = 1e9 + 0.3
    for second in (0, 0, 20):
        assert not shared.take("team", 1, 3, None, now_s + second).wait_s
    refused = shared.take("team", 2, 3, None, now_s + 21)
    assert refused.used == 3
    assert WINDOW_S - 21 <= refused.wait_s <= WINDOW_S - 21 + 0.5
    then_s = now_s + 21 + refused.wait_s
    assert shared.take("team", 2, 3, None, then_s - 0.01).wait_s
    assert not shared.take("team", 2, 3, None, then_s + 0.01).wait_s
    assert not shared.take("other", 3, 3, None, now_s).wait_s


def test_what_is_more_than_the_limit_never_fits(shared: Counters) -> None:
    assert shared.take("team", 4, 3, None, 1e9).wait_s >= 0
    assert shared.take("team", 1, 3, None, 1e9).used == 1


def test_a_clock_that_is_set_back_lets_nothing_more_in(shared: Counters) -> None:
    for _ in range(3):
        shared.take("team", 1, 3, None, 1e9)
    assert shared.take("team", 1, 3, None, 1e9 - 20).wait_s
    shared.take("team", 1, 3, None, 1e9 - 1e6)  # set for good
    assert not shared.take("team", 1, 3, None, 1e9 - 1e6 + 1).wait_s


def test_processes_count_together(path: Path, shared: Counters) -> None:
    processes = [start(TAKE, path, 80) for _ in range(4)]
    total = sum(int(process.communicate(timeout=LIMIT_S)[0]) for process in processes)
    # On a busy machine one that holds the lock may be stopped, and is not waited for.
    assert 100 <= total <= 102
    assert shared.take("team", 1, 100, None, time.time()).wait_s


def test_what_a_killed_process_ran_is_taken_back(path: Path, shared: Counters) -> None:
    process = start(RUN, path)
    with process:
        assert first_line(process) == "1"
        assert shared.take("team", 1, None, 2, time.time()).running == 2
        assert shared.take("team", 1, None, 2, time.time()).running == -1
        process.kill()
        process.wait(LIMIT_S)
    deadline = time.monotonic() + LIMIT_S
    while shared.take("team", 1, None, 2, time.time()).running != 2:
        assert time.monotonic() < deadline
        time.sleep(REAP_S / 5)


def test_a_clock_that_is_set_leaves_what_runs(
    path: Path, shared: Counters, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Psutil tells the time of a start from `btime` of /proc/stat, which moves with the clock."""
    with start(RUN, path) as process:
        assert first_line(process) == "1"
        monkeypatch.setattr(psutil, "PROCFS_PATH", str(_proc_after_a_step(path.parent, 3600)))
        for _ in range(2):
            time.sleep(REAP_S * 1.1)
            assert shared.take("team", 1, None, 1, time.time()).running == -1
        process.kill()


def _proc_after_a_step(folder: Path, step_s: int) -> Path:
    """Returns /proc as it is seen after the clock was set forward."""
    proc = folder / "proc"
    proc.mkdir()
    for entry in Path("/proc").iterdir():
        (proc / entry.name).symlink_to(entry)
    (proc / "stat").unlink()
    lines = Path("/proc/stat").read_text().splitlines()
    moved = [
        f"btime {int(line.split()[1]) + step_s}" if line.startswith("btime") else line
        for line in lines
    ]
    (proc / "stat").write_text("\n".join(moved))
    return proc


def test_what_runs_is_counted_until_it_ends(shared: Counters) -> None:
    assert shared.take("team", 1, None, 1, 1e9).running == 1
    assert shared.take("team", 1, None, 1, 1e9).running == -1
    for _ in range(3):
        shared.finish("team", 1e9)
    assert shared.take("team", 1, None, 1, 1e9).running == 1


def test_a_process_that_keeps_the_lock_stops_no_other(path: Path, shared: Counters) -> None:
    with start(HOLD, path) as process:
        assert first_line(process) == "held"
        began_s = time.monotonic()
        for number in range(20):
            assert shared.take("team", 1, 30, None, 1e9).used == number + 1
        assert time.monotonic() - began_s < LIMIT_S / 4
        process.kill()


def test_a_name_that_is_used_takes_the_place_of_one_that_is_idle(
    shared: Counters, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared.take("runs", 1, None, 1, 1e9)
    monkeypatch.setattr(counter_file, "NUM_RECORDS", 1)
    monkeypatch.setattr(counter_file, "NUM_PROBES", 1)
    for number in range(5):
        assert shared.take(f"team-{number}", 1, 1, None, 1e9 + number).used == 1


def test_more_processes_than_columns_share_the_last(path: Path, shared: Counters) -> None:
    others = [Counters(path) for _ in range(NUM_PROCESSES + 1)]
    for number, other in enumerate(others):
        assert other.take("team", 1, None, None, 1e9).running == number + 1
    for other in others:
        other.close()


def test_a_file_of_another_size_is_made_anew(path: Path) -> None:
    path.write_bytes(b"x" * 10)
    Counters(path).close()
    assert path.stat().st_size == SIZE


def test_a_new_file_is_its_users_alone(path: Path, shared: Counters) -> None:
    assert path.stat().st_mode & 0o777 == 0o600


def test_after_the_end_nothing_counts(path: Path) -> None:
    ended = Counters(path)
    ended.take("team", 1, None, 1, 1e9)
    ended.close()
    ended.close()
    ended.finish("team", 1e9)
    assert not ended.take("team", 1, 0, 0, 1e9).wait_s
    other = Counters(path)
    assert other.take("team", 1, None, 1, 1e9).running == 1
    other.close()


def test_a_correction_counts_more_now_and_takes_less_back_then(shared: Counters) -> None:
    begun_s = 1e9
    shared.take("team", 10, 100, None, begun_s)
    shared.take("other", 50, 100, None, begun_s)
    # A request of 90 s used more than was thought: that counts for a minute from its end.
    ended_s = begun_s + 90
    shared.correct("team", 85, begun_s, ended_s)
    assert shared.take("team", 20, 100, None, ended_s + 55).wait_s > 0
    assert shared.take("team", 20, 100, None, ended_s + 61).fits
    shared.correct("other", -40, begun_s, begun_s + 1)
    assert shared.take("other", 90, 100, None, begun_s + 1).fits
    shared.take("late", 100, 100, None, begun_s)
    shared.take("late", 60, 100, None, begun_s + 70)
    shared.correct("late", -100, begun_s, begun_s + 80)  # of another minute: nothing to take back
    assert shared.take("late", 50, 100, None, begun_s + 80).wait_s > 0


def test_every_key_has_a_place_of_its_own(shared: Counters) -> None:
    names = [f"key-{number}\0{kind}" for number in range(2000) for kind in ("", "tokens")]
    assert all(shared.take(name, 1, 1, None, 1e9).fits for name in names)
    assert not any(shared.take(name, 1, 1, None, 1e9).fits for name in names)


def test_others_see_what_a_process_has_begun_before_it_looks(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both would else begin, and one more than the limit would run."""
    shared, other = Counters(path), Counters(path)
    now_s = time.time()
    for _ in range(3):  # the first of them holds something, and needs no lock
        shared.take("team", 1, 1000, 6, now_s)
    look = CounterFile.running

    def stopped(file: CounterFile, record: int) -> list[int]:
        seen = look(file, record)
        monkeypatch.setattr(CounterFile, "running", look)
        assert [other.take("team", 1, 1000, 6, now_s).fits for _ in range(3)] == [True, True, False]
        return seen

    monkeypatch.setattr(CounterFile, "running", stopped)
    assert shared.take("team", 1, 1000, 6, now_s).fits
    assert not shared.take("team", 1, 1000, 6, now_s).fits
    shared.finish("team", now_s)
    assert shared.take("team", 1, 1000, 6, now_s).running == 6
    shared.close()
    other.close()


def test_the_file_has_no_holes_that_a_full_disk_could_not_fill(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.touch()
    os.truncate(path, SIZE)  # as earlier versions left it
    Counters(path).close()
    assert path.stat().st_blocks * 512 >= SIZE

    def refuse(*args: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(OSError, match=f"No space left on device: '{path}'"):
        Counters(path)
