"""Deaths and strikes, kept for the next replica."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from truthgpt_serve.server.faults import history as history_module
from truthgpt_serve.server.faults.history import History

FINGERPRINT = bytes(range(16))


@pytest.fixture
def history(tmp_path: Path) -> History:
    return History(tmp_path / "deaths", "v")


def test_strikes_expire_and_are_bounded(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    many = [number.to_bytes(16, "big") for number in range(1, 300)]
    monkeypatch.setattr(history_module, "MAX_STRIKES", 100)
    history.add("serving", "x", many)
    assert len(json.loads((history.folder / "history.json").read_text())["strikes"]) == 100
    for _ in range(40):
        history.add("serving", "x", [FINGERPRINT])
    assert len(history.deaths()) == history_module.MAX_DEATHS
    assert history.strikes(FINGERPRINT) == 40
    time.sleep(0.2)
    monkeypatch.setattr(history_module, "STRIKE_S", 0.1)
    assert history.strikes(FINGERPRINT) == 0
    history.add("serving", "x", [FINGERPRINT])
    monkeypatch.setattr(history_module, "STRIKE_S", 600.0)
    assert history.strikes(FINGERPRINT) == 1, "older deaths do not count"


@pytest.mark.parametrize("step_s", [-86_400, 86_400])
def test_a_clock_that_is_set_changes_nothing(
    history: History, monkeypatch: pytest.MonkeyPatch, step_s: int
) -> None:
    history.add("serving", "x", [FINGERPRINT])
    time_before = time.time
    monkeypatch.setattr(time, "time", lambda: time_before() + step_s)
    history.add("serving", "x", [FINGERPRINT])
    assert history.strikes(FINGERPRINT) == 2
    assert abs(history.deaths()[1].at - history.deaths()[0].at) < 60


def test_strikes_end_though_the_clock_is_set_back(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    history.add("serving", "x", [FINGERPRINT])
    time_before = time.time
    monkeypatch.setattr(time, "time", lambda: time_before() - 86_400)
    monkeypatch.setattr(history_module, "STRIKE_S", 0.1)
    time.sleep(0.2)
    assert history.strikes(FINGERPRINT) == 0


def test_a_damaged_history_is_begun_anew(history: History) -> None:
    history.add("serving", "x", [FINGERPRINT])
    for text in ("{", "[]", '{"deaths": 3, "strikes": {}}', '{"deaths": [], "strikes": {"a": 1}}'):
        (history.folder / "history.json").write_text(text)
        fresh = History(history.folder, "v")
        assert fresh.deaths() == []
        assert fresh.strikes(FINGERPRINT) == 0


def test_what_was_before_the_machine_started_does_not_count(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its clock begins anew there, and the folder may have stayed."""
    now = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: now() + 86_400)
    history.add("serving", "x", [FINGERPRINT])
    assert len(history.deaths()) == history.strikes(FINGERPRINT) == 1
    monkeypatch.setattr(time, "monotonic", now)
    later = History(history.folder, "v")
    assert later.deaths() == []
    assert later.strikes(FINGERPRINT) == 0
    later.add("serving", "x", [FINGERPRINT])
    assert len(later.deaths()) == later.strikes(FINGERPRINT) == 1
