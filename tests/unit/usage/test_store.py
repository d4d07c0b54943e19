"""Usage in an SQLite file: exact, bounded, and still there after what can happen to a file."""

from __future__ import annotations

import signal
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from truthgpt_serve.usage.batch import COUNTS, MAX_BATCH_ROWS, Batch, Row, UsageQuery
from truthgpt_serve.usage.database import StoreError
from truthgpt_serve.usage.store import HOURLY_DAYS, UsageStore

HOUR = 500_000
"""Which is 2027-01-15T08:00Z."""
ONCE: Any = (1, 0, 10, 4, 20, 1, 2.5, 0.5)
WRITER = """
import sys
from pathlib import Path
from truthgpt_serve.usage.batch import Batch
from truthgpt_serve.usage.store import UsageStore
store, source = UsageStore(Path(sys.argv[1])), sys.argv[2]
for sequence in range(1, 1_000_000):
    rows = [(500_000, f"key-{at}", "m", 1, 0, 1, 0, 1, 0, 0.0, 0.0) for at in range(50)]
    store.add(Batch(source, sequence, rows))
    print(sequence, flush=True)
"""


class Clock:
    def __init__(self, hour: int = HOUR) -> None:
        self.hour = hour

    def __call__(self) -> float:
        return self.hour * 3600.0 + 1


def row(hour: int = HOUR, key: str = "a", model: str = "m", counts: Any = ONCE) -> Row:
    return (hour, key, model, *counts)


def asked(*group_by: str, start: int = 0, end: int = HOUR + 24, limit: int = 100) -> UsageQuery:
    return UsageQuery(start, end, group_by, limit)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "usage.sqlite"


def work_until(hour: int, store: UsageStore, clock: Clock) -> None:
    """Has a service work on each day until an hour."""
    while clock.hour < hour:
        clock.hour = min(clock.hour + 24, hour)
        store.add(Batch(f"of {clock.hour}", 1, []))


def requests_in(store: UsageStore, **options: Any) -> Any:
    return store.query(asked(**options))[0][0]


def test_what_is_added_is_summed_by_any_group(path: Path) -> None:
    store = UsageStore(path, clock=Clock())
    assert store.query(asked()) == [[0] * len(COUNTS)]
    assert store.query(asked("key")) == []
    store.add(Batch("s", 1, [row(), row(key="b"), row(HOUR - 24, model="n")]))
    store.add(Batch("s", 2, [row(counts=(2, 1, 5, 0, 5, 0, 0.0, 0.25))]))
    both = [3, 1, 15, 4, 25, 1, 2.5, 0.75]
    assert store.query(asked()) == [[5, 1, 35, 12, 65, 3, 7.5, 1.75]]
    assert store.query(asked("key")) == [["a", 4, 1, 25, 8, 45, 2, 5.0, 1.25], ["b", *ONCE]]
    day = HOUR // 24
    assert store.query(asked("day", "model", "key")) == [
        [day - 1, "n", "a", *ONCE],
        [day, "m", "a", *both],
        [day, "m", "b", *ONCE],
    ]
    assert requests_in(store, start=HOUR) == 4
    assert requests_in(store, end=HOUR) == 1
    assert len(store.query(asked("day", "key", limit=2))) == 2
    store.close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_batch_that_comes_again_is_not_counted_again(path: Path) -> None:
    store = UsageStore(path, clock=Clock())
    assert store.add(Batch("s", 1, [row()]))
    assert not store.add(Batch("s", 1, [row()]))
    assert store.add(Batch("other", 1, [row()]))
    store.close()
    store = UsageStore(path, clock=Clock())
    assert not store.add(Batch("s", 1, [row()]))
    assert store.add(Batch("s", 2, [row()]))
    assert requests_in(store) == 3
    too_many = [row(key=f"{at}") for at in range(MAX_BATCH_ROWS + 1)]
    with pytest.raises(StoreError, match="at most 4000 rows"):
        store.add(Batch("s", 3, too_many))
    store.close()


def test_old_hours_become_days_and_older_days_are_dropped(path: Path) -> None:
    clock = Clock()
    store = UsageStore(path, keep_days=100, clock=clock)
    first = HOUR - HOUR % 24 - 48
    store.add(Batch("s", 1, [row(first), row(first + 5), row(first + 23), row(first + 24 + 3)]))
    work_until(first + (HOURLY_DAYS + 1) * 24, store, clock)
    store.add(Batch("s", 2, [row(clock.hour)]))
    assert store.query(asked("day"))[0][:2] == [first // 24, 3]
    assert requests_in(store, start=first, end=first + 1) == 3
    assert requests_in(store, start=first + 24 + 3, end=first + 24 + 4) == 1
    work_until(first + 101 * 24, store, clock)
    store.add(Batch("s", 3, [row(clock.hour)]))
    assert requests_in(store, end=clock.hour + 1) == 3
    store.close()


def test_hours_of_a_wrong_clock_count_now(path: Path) -> None:
    store = UsageStore(path, keep_days=10, clock=Clock())
    store.add(Batch("s", 1, [row(3), row(HOUR + 30), row(HOUR + 1)]))
    assert requests_in(store, start=HOUR, end=HOUR + 1) == 2
    store.close()


@pytest.mark.parametrize("wrong", [HOUR + 3 * 365 * 24, 0])
def test_a_clock_that_is_wrong_for_a_while_loses_nothing(path: Path, wrong: int) -> None:
    clock = Clock()
    for sequence, hour in enumerate((HOUR, wrong, wrong + 1, HOUR, HOUR + 1, HOUR + 2), 1):
        clock.hour = hour
        store = UsageStore(path, clock=clock)  # as one that is started again
        assert store.add(Batch("s", sequence, [row(hour)]))
        assert not store.add(Batch("s", sequence, [row(hour)]))
        store.close()
    assert requests_in(store, end=HOUR + 4 * 365 * 24) == 6
    assert requests_in(store, start=HOUR, end=HOUR + 24) == (4 if wrong else 6)
    store.close()


def test_more_rows_than_fit_drop_the_oldest_days(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    store = UsageStore(path, max_rows=30, clock=clock)
    start = HOUR - HOUR % 24 - 240
    store.add(Batch("s", 1, [row(start + hour) for hour in range(0, 240, 6)]))
    kept = store.query(asked("day"))
    assert [day for day, *_ in kept] == [start // 24 + day for day in range(3, 10)]
    assert "more than 30 rows: the day 2027-01-05 is dropped" in caplog.text
    store.close()


@pytest.mark.parametrize("fault", ["no database", "a broken page", "cut off"])
def test_a_damaged_file_is_set_aside(
    path: Path, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = UsageStore(path, clock=Clock())
    store.add(Batch("s", 1, [row(key=f"key-{at:04}" * 8) for at in range(3000)]))
    store.close()
    content = path.read_bytes()
    if fault == "no database":
        path.write_bytes(b"x" * 5000)
    elif fault == "a broken page":
        path.write_bytes(content[:8192] + b"\xa5" * 8192 + content[16384:])
    else:
        path.write_bytes(content[: len(content) // 2])
    store = UsageStore(path, clock=Clock())
    assert store.add(Batch("s", 2, [row()]))
    assert requests_in(store) == 1
    (aside,) = path.parent.glob("*.damaged-*")
    assert "is damaged" in caplog.text
    assert f"set aside as {aside.name}" in caplog.text
    store.close()


def test_a_file_that_is_damaged_while_it_is_open(path: Path) -> None:
    store = UsageStore(path, clock=Clock())
    store.add(Batch("s", 1, [row(key=f"key-{at:04}" * 8) for at in range(3000)]))
    assert store._file._database is not None
    store._file._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    store._file._database.execute("PRAGMA shrink_memory")
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (path.stat().st_size - 4096))
    assert store.query(asked("key")) == []
    assert store.add(Batch("s", 2, [row()]))
    assert requests_in(store) == 1
    assert len(list(path.parent.glob("*.damaged-*"))) == 1
    store.close()


@pytest.mark.parametrize("change", ["PRAGMA application_id = 7", "PRAGMA user_version = 2"])
def test_a_database_of_others_is_left_alone(path: Path, change: str) -> None:
    UsageStore(path, clock=Clock()).add(Batch("s", 1, [row()]))
    database = sqlite3.connect(path)
    database.execute(change)
    database.close()
    store = UsageStore(path, clock=Clock())
    with pytest.raises(StoreError, match="name another file"):
        store.add(Batch("s", 2, [row()]))
    assert not list(path.parent.glob("*.damaged-*"))
    store.close()


def test_a_full_disk_counts_nothing_and_works_when_there_is_room(path: Path) -> None:
    store = UsageStore(path, clock=Clock())
    store.add(Batch("s", 1, [row()]))
    many = Batch("s", 2, [row(key=f"key-{at:04}" * 8) for at in range(3000)])
    assert store._file._database is not None
    store._file._database.execute("PRAGMA max_page_count = 10")
    for _ in range(2):
        with pytest.raises(StoreError, match="cannot be used now: database or disk is full"):
            store.add(many)
    assert requests_in(store) == 1
    store._file._database.execute("PRAGMA max_page_count = 100000")
    assert store.add(many)
    assert requests_in(store) == 3001
    store.close()


def test_a_file_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = UsageStore(tmp_path / "file" / "usage.sqlite", clock=Clock())
    with pytest.raises(StoreError, match=r"usage.sqlite cannot be used now: "):
        store.add(Batch("s", 1, [row()]))
    (tmp_path / "file").unlink()
    assert store.add(Batch("s", 1, [row()]))
    store.close()


def test_a_file_that_is_taken_away_is_made_anew(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = UsageStore(path, clock=Clock())
    store.add(Batch("s", 1, [row()]))
    path.unlink()
    store.add(Batch("s", 2, [row()]))
    assert requests_in(store) == 1
    assert "was taken away, emptied or replaced" in caplog.text
    store.close()
    store = UsageStore(path, clock=Clock())
    assert requests_in(store) == 1
    store.close()


def test_a_file_that_is_emptied_is_made_anew(path: Path) -> None:
    """As by the shell's `>`: SQLite writes on into the open file, and nobody can read that."""
    store = UsageStore(path, clock=Clock())
    store.add(Batch("s", 1, [row()]))
    for file in (path, path.with_name(f"{path.name}-wal")):
        file.write_bytes(b"")
    store.add(Batch("s", 2, [row()]))
    store.close()
    store = UsageStore(path, clock=Clock())
    assert requests_in(store) == 1
    store.close()


@pytest.mark.parametrize("suffixes", [("-wal",), ("-shm",), ("-wal", "-shm")])
def test_a_file_that_lost_its_journal_keeps_what_was_in_it(
    path: Path, suffixes: tuple[str, ...]
) -> None:
    store = UsageStore(path, clock=Clock())
    store.add(Batch("s", 1, [row()]))
    for suffix in suffixes:
        path.with_name(f"{path.name}{suffix}").unlink()
    assert store.add(Batch("s", 2, [row()]))
    other = UsageStore(path, clock=Clock())  # sees what is on the disk, as after `kill -9`
    assert requests_in(other) == 2
    assert not other.add(Batch("s", 2, [row()]))
    other.close()
    store.close()


@pytest.mark.parametrize("num_kept", [0, 3000])
def test_a_file_that_is_replaced_gets_nothing_of_the_former(path: Path, num_kept: int) -> None:
    kept, former = path.with_name("kept.sqlite"), path.with_name("former.sqlite")
    store = UsageStore(kept, clock=Clock())
    store.add(Batch("a", 1, [row(key=f"key-{at:04}" * 8) for at in range(num_kept)]))
    store.close()
    store = UsageStore(path, clock=Clock())
    for sequence in range(1, 21):
        store.add(Batch("s", sequence, [row(key=f"own-{sequence}")]))
    path.rename(former)
    kept.rename(path)
    assert requests_in(store) == num_kept
    assert store.add(Batch("s", 21, [row()]))
    assert requests_in(store) == num_kept + 1
    store.close()
    for file, number in ((path, num_kept + 1), (former, 20)):
        store = UsageStore(file, clock=Clock())
        assert requests_in(store) == number
        store.close()
    assert not list(path.parent.glob("*.damaged-*"))


def test_a_file_that_lost_a_table_is_set_aside(path: Path) -> None:
    store = UsageStore(path, clock=Clock())
    store.add(Batch("s", 1, [row()]))
    database = sqlite3.connect(path)
    database.execute("DROP TABLE usage")
    database.close()
    with pytest.raises(StoreError, match="no such table"):
        store.add(Batch("s", 2, [row()]))
    assert store.add(Batch("s", 2, [row()]))
    assert requests_in(store) == 1
    assert len(list(path.parent.glob("*.damaged-*"))) == 1
    store.close()


def test_two_processes_may_have_the_file(path: Path) -> None:
    one, two = UsageStore(path, clock=Clock()), UsageStore(path, clock=Clock())
    for sequence in range(1, 20):
        one.add(Batch("one", sequence, [row()]))
        two.add(Batch("two", sequence, [row()]))
    assert requests_in(one) == requests_in(two) == 38
    one.close()
    two.close()


def test_what_was_taken_survives_kill_9(path: Path) -> None:
    taken = 0
    for source in ("one", "two", "three"):
        command = [sys.executable, "-c", WRITER, str(path), source]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            lines = [process.stdout.readline() for _ in range(25)]
            process.send_signal(signal.SIGKILL)
            lines += process.stdout.readlines()
        last = int(lines[-1])
        store = UsageStore(path, clock=Clock())
        assert not store.add(Batch(source, last, [row()]))
        found = requests_in(store)
        # The last one may have been written and not yet be acknowledged.
        assert found in (taken + 50 * last, taken + 50 * (last + 1))
        taken = found
        store.close()
    assert not list(path.parent.glob("*.damaged-*"))


def test_a_sum_that_takes_too_long_says_what_to_ask_for(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("truthgpt_serve.usage.store.QUERY_S", -1.0)
    store = UsageStore(path)
    store.add(Batch("s", 1, [row(HOUR - at, f"key-{at}") for at in range(4000)]))
    with pytest.raises(StoreError, match="ask for less time"):
        store.query(asked("key", limit=10_000))
    monkeypatch.undo()
    assert requests_in(store) == 4000
