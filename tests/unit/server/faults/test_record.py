"""Records of requests in flight, which outlive their process."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from truthgpt_serve.server.faults.record import NUM_SLOTS, Record, take_remains

FINGERPRINT = bytes(range(16))


def test_a_living_process_is_left_alone(tmp_path: Path) -> None:
    record = Record(tmp_path)
    code = (
        "import sys; from pathlib import Path;"
        "from truthgpt_serve.server.faults.record import take_remains;"
        "sys.exit(take_remains(Path(sys.argv[1])) is not None)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, record.path],
        timeout=60,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0
    assert record.path.exists()
    record.close()


def test_a_torn_record_is_read(tmp_path: Path) -> None:
    for data in (b"", b"{", b"[]\0", b"\xff" * 5000):
        path = tmp_path / "1.record"
        path.write_bytes(data)
        remains = take_remains(path)
        assert remains is not None
        assert remains.head == {}


def test_more_requests_than_slots_are_served(tmp_path: Path) -> None:
    record = Record(tmp_path)
    slots = [record.begin(FINGERPRINT) for _ in range(NUM_SLOTS + 3)]
    assert slots[-1] is None
    for slot in slots:
        record.end(slot)
    assert record.in_flight() == []
    record.close()
    record.end(record.begin(FINGERPRINT))
    record.note(phase="later")


def test_a_record_has_no_holes_that_a_full_disk_could_not_fill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = Record(tmp_path)
    assert record.path.stat().st_blocks * 512 >= record.path.stat().st_size > 65_536
    record.close()

    def refuse(*args: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(OSError, match="No space left on device"):
        Record(tmp_path)
    assert list(tmp_path.iterdir()) == []
