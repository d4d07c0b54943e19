"""Requests are counted once, whatever becomes of the batches on their way."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest

from truthgpt_serve.usage.batch import MAX_BATCH_ROWS, Batch
from truthgpt_serve.usage.counted import Usage
from truthgpt_serve.usage.recorder import OTHER_KEY, UsageRecorder

HOUR = 500_000
USED = Usage(10, 4, 20, 1, 2.5, 0.5)
LIMIT_S = 20.0
COUNTER = """
import os
import time
from truthgpt_serve.usage.counted import Usage
from truthgpt_serve.usage.recorder import UsageRecorder

def tell(what, number):  # two threads do: one call of the system for each line
    os.write(1, f"{what} {number}\\n".encode())

number = 0
recorder = UsageRecorder(lambda batch: tell("sent", batch.rows[0][3]), period_s=0.2)
while True:
    number += 1
    recorder.add("a", "m", Usage(1), False)
    tell("added", number)
    time.sleep(0.01)
"""


class Taker:
    """Takes batches, or fails."""

    def __init__(self) -> None:
        self.tried: list[Batch] = []
        self.taken: list[Batch] = []
        self.problem = ""

    def __call__(self, batch: Batch) -> None:
        self.tried.append(batch)
        if self.problem:
            raise OSError(self.problem)
        self.taken.append(batch)

    @property
    def requests(self) -> int:
        return sum(row[3] for batch in self.taken for row in batch.rows)


def wait_for(check: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_requests_of_an_hour_are_added_up() -> None:
    taker, now = Taker(), [HOUR * 3600.0]
    recorder = UsageRecorder(taker, period_s=60, clock=lambda: now[0])
    recorder.add("a", "m", USED, False)
    recorder.add("a", "m", USED, True)
    recorder.add("b", "m", Usage(), False)
    now[0] += 3600
    recorder.add("a", "m", USED, False)
    recorder.close()
    (batch,) = taker.taken
    assert batch.sequence == 1
    assert batch.rows == [
        (HOUR, "a", "m", 2, 1, 20, 8, 40, 2, 5.0, 1.0),
        (HOUR, "b", "m", 1, 0, 0, 0, 0, 0, 0.0, 0.0),
        (HOUR + 1, "a", "m", 1, 0, 10, 4, 20, 1, 2.5, 0.5),
    ]


def test_nothing_runs_before_the_first_request() -> None:
    before = threading.active_count()
    recorder = UsageRecorder(Taker())
    assert threading.active_count() == before
    recorder.close()


def test_a_batch_is_sent_unchanged_until_it_is_taken(caplog: pytest.LogCaptureFixture) -> None:
    taker = Taker()
    taker.problem = "no room"
    recorder = UsageRecorder(taker, period_s=0.02)
    recorder.add("a", "m", USED, False)
    wait_for(lambda: len(taker.tried) > 2)
    recorder.add("a", "m", USED, False)
    assert len({id(batch) for batch in taker.tried}) == 1
    assert caplog.text.count("waits in memory (1 requests)") == 1
    assert "no room" in caplog.text
    assert not recorder.is_kept
    taker.problem = ""
    wait_for(lambda: taker.requests == 2)
    recorder.close()
    assert [batch.sequence for batch in taker.taken] == [1, 2]
    assert recorder.is_kept
    assert "usage is kept again" in caplog.text
    assert "lost" not in caplog.text


def test_what_cannot_be_sent_at_the_end_is_said(caplog: pytest.LogCaptureFixture) -> None:
    taker = Taker()
    taker.problem = "no room"
    recorder = UsageRecorder(taker, period_s=0.02)
    recorder.add("a", "m", USED, False)
    wait_for(lambda: len(taker.tried) > 1)
    recorder.add("b", "m", USED, False)
    recorder.close()
    assert "the usage of 2 requests is lost: no room" in caplog.text


def test_the_end_does_not_wait_for_ever() -> None:
    hangs = threading.Event()
    recorder = UsageRecorder(lambda batch: hangs.wait(LIMIT_S), period_s=60)
    recorder.add("a", "m", USED, False)
    started_s = time.monotonic()
    recorder.close(0.1)
    assert time.monotonic() - started_s < LIMIT_S / 2
    hangs.set()


def test_memory_is_bounded_and_counts_stay_whole() -> None:
    taker, now = Taker(), [HOUR * 3600.0]
    recorder = UsageRecorder(taker, period_s=60, max_rows=10, clock=lambda: now[0])
    for hour in range(8):
        now[0] = (HOUR + hour) * 3600.0
        for key in range(6):
            recorder.add(f"key-{key}", "m", USED, False)
        assert len(recorder._rows) <= 11
    for key in range(50):
        recorder.add(f"more-{key}", "m", USED, False)
    assert len(recorder._rows) <= 11
    recorder.close()
    keys = {row[1] for batch in taker.taken for row in batch.rows}
    assert {f"key-{key}" for key in range(6)} | {OTHER_KEY} <= keys
    assert taker.requests == 8 * 6 + 50


def test_more_keys_than_a_batch_takes() -> None:
    taker = Taker()
    recorder = UsageRecorder(taker, period_s=0.2, clock=lambda: HOUR * 3600.0)
    number = 2 * MAX_BATCH_ROWS + 10
    for key in range(number):
        recorder.add(f"key-{key}", "m", USED, False)
    wait_for(lambda: taker.requests == number)
    assert max(len(batch.rows) for batch in taker.taken) <= MAX_BATCH_ROWS
    recorder.close()


def test_threads_lose_nothing_to_each_other() -> None:
    taker = Taker()
    recorder = UsageRecorder(taker, period_s=0.001)
    numbers: list[int] = []

    def count() -> None:
        """Adds until batches were taken meanwhile, however long that takes here."""
        number, deadline_s = 0, time.monotonic() + 60
        while number < 5000 or (len(taker.taken) < 2 and time.monotonic() < deadline_s):
            recorder.add(f"key-{number % 7}", "m", USED, False)
            number += 1
        numbers.append(number)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    recorder.close()
    assert taker.requests == sum(numbers) >= 20_000
    assert len(taker.taken) > 1
    assert [batch.sequence for batch in taker.taken] == list(range(1, len(taker.taken) + 1))


def test_kill_9_loses_no_more_than_what_was_not_due() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", COUNTER], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        lines: list[str] = []
        while sum(line.startswith("sent") for line in lines) < 3:
            lines.append(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
    numbers = [line.split() for line in lines]
    added = max(int(number) for what, number in numbers if what == "added")
    sent = sum(int(number) for what, number in numbers if what == "sent")
    assert added - 1 <= sent <= added + 1
