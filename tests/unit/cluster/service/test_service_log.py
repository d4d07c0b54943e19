"""The log of the service does not grow without end."""

from __future__ import annotations

from pathlib import Path

import pytest

from truthgpt_serve.cluster.service import service_log
from truthgpt_serve.cluster.service.service_log import ServiceLog


def test_a_long_log_begins_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_log, "MAX_BYTES", 1000)
    log = ServiceLog(tmp_path)
    with log.open_for_writing(fresh=True) as file:
        for number in range(100):
            file.write(b"%060d\n" % number)
            log.read_new()
            assert log.read_new() == []
        sizes = log.path.stat().st_size, log.path.with_name("service.log.1").stat().st_size
        assert sizes[0] <= 1100
        assert 1000 < sizes[1] <= 1100
        file.write(b"last\n")
    assert log.read_new() == ["last"]
    assert log.path.stat().st_mode & 0o777 == 0o600
    with log.open_for_writing(fresh=True):
        assert log.tail() == []
