"""A process that begins while the file of keys is broken has the keys of those that run."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import time
from pathlib import Path

import pytest

from tests.support.key_rings import name_of
from truthgpt_serve.access import last_keys
from truthgpt_serve.access.key_edit import add_key, revoke_key
from truthgpt_serve.access.key_ring import KeyRing
from truthgpt_serve.access.last_keys import shared_file
from truthgpt_serve.errors import ConfigError

SLOW_S = 3600.0
"""So that only the test has the file read."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.yaml"


def test_a_process_that_begins_while_the_file_is_broken_has_the_keys_of_others(
    path: Path, rings: list[KeyRing], caplog: pytest.LogCaptureFixture
) -> None:
    key = add_key(path, {"name": "one"})
    good = path.read_bytes()
    first = KeyRing(path, period_s=SLOW_S)
    rings.append(first)
    path.write_text("keys: [[[")
    second = KeyRing(path, period_s=SLOW_S)
    rings.append(second)
    assert name_of(second, key) == "one"
    assert not second.is_current
    assert "the keys stay as they were" in caplog.text
    path.unlink()
    third = KeyRing(path, period_s=SLOW_S)
    rings.append(third)
    assert name_of(third, key) == "one"
    path.write_bytes(good)
    revoke_key(path, "one")
    third.refresh()
    third.refresh()  # a change counts once it is the same in two looks
    assert third.is_current
    assert name_of(third, key) is None
    path.write_text("keys: [[[")
    fourth = KeyRing(path, period_s=SLOW_S)
    rings.append(fourth)
    assert name_of(fourth, key) is None  # as it was withdrawn before the file broke


@pytest.mark.parametrize(
    ("text", "cause"), [("", "it is empty"), (None, "No such file or directory")]
)
def test_a_process_that_begins_while_the_file_has_nothing_says_why_once(
    path: Path,
    rings: list[KeyRing],
    caplog: pytest.LogCaptureFixture,
    text: str | None,
    cause: str,
) -> None:
    key = add_key(path, {"name": "one"})
    rings.append(KeyRing(path, period_s=SLOW_S))
    path.unlink()
    if text is not None:
        path.write_text(text)
    for _ in range(2):  # the second one finds what the first one has not spoiled
        ring = KeyRing(path, period_s=SLOW_S)
        rings.append(ring)
        caplog.clear()
        for _ in range(3):
            ring.refresh()
        assert name_of(ring, key) == "one"
        assert not ring.is_current
        assert "the keys stay as they were" not in caplog.text  # as the start has said it
    caplog.clear()
    rings.append(KeyRing(path, period_s=SLOW_S))
    assert cause in caplog.text


def test_the_keys_of_processes_that_ended_count_no_more(
    path: Path, rings: list[KeyRing], monkeypatch: pytest.MonkeyPatch
) -> None:
    add_key(path, {"name": "one"})
    ring = KeyRing(path, period_s=0.01)
    rings.append(ring)
    path.write_text("keys: [[[")
    monkeypatch.setattr(last_keys, "MARK_S", 0.01)
    monkeypatch.setattr(last_keys, "STALE_S", 0.5)
    time.sleep(1)
    rings.append(KeyRing(path, period_s=SLOW_S))  # the first one still says that it uses them
    ring.close()
    time.sleep(0.6)
    with pytest.raises(ConfigError):
        KeyRing(path)


def test_a_copy_that_is_gone_is_kept_again(path: Path, rings: list[KeyRing]) -> None:
    key = add_key(path, {"name": "one"})
    ring = KeyRing(path, period_s=SLOW_S)
    rings.append(ring)
    shared_file(path, ".yaml").unlink()
    ring._mark()
    path.write_text("keys: [[[")
    rings.append(KeyRing(path, period_s=SLOW_S))
    assert name_of(rings[-1], key) == "one"


def test_the_copy_is_this_users_alone(path: Path, rings: list[KeyRing]) -> None:
    add_key(path, {"name": "one"})
    rings.append(KeyRing(path, period_s=SLOW_S))
    copy = shared_file(path, ".yaml")
    assert copy.read_bytes() == path.read_bytes()
    assert copy.stat().st_mode & 0o777 == 0o600
    assert copy.parent.stat().st_mode & 0o777 == 0o700


def test_without_a_place_for_copies_a_broken_file_is_an_error(
    path: Path,
    tmp_path: Path,
    rings: list[KeyRing],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    key = add_key(path, {"name": "one"})
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    ring = KeyRing(path, period_s=SLOW_S)
    rings.append(ring)
    assert name_of(ring, key) == "one"
    assert "no copy of the keys is kept" in caplog.text
    path.write_text("keys: [[[")
    with pytest.raises(ConfigError):
        KeyRing(path)


def test_a_folder_that_is_gone_is_made_again_and_one_that_cannot_be_is_told_once(
    path: Path,
    tmp_path: Path,
    rings: list[KeyRing],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(last_keys, "MARK_S", 0.0)
    key = add_key(path, {"name": "one"})
    ring = KeyRing(path, period_s=SLOW_S)
    rings.append(ring)
    folder = shared_file(path).parent
    shutil.rmtree(folder)
    ring._mark()
    assert shared_file(path, ".yaml").is_file()
    shutil.rmtree(folder)
    folder.write_text("in the way")
    for _ in range(3):
        ring._mark()
        ring.refresh()
    assert caplog.text.count("no copy of the keys is kept") == 1
    assert ring.is_current
    assert name_of(ring, key) == "one"


def test_a_copy_that_cannot_be_replaced_is_removed(
    path: Path, rings: list[KeyRing], monkeypatch: pytest.MonkeyPatch
) -> None:
    add_key(path, {"name": "one"})
    ring = KeyRing(path, period_s=SLOW_S)
    rings.append(ring)
    revoke_key(path, "one")

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    ring.refresh()
    ring.refresh()
    assert not shared_file(path, ".yaml").exists()  # it would still have the key
    assert [*shared_file(path).parent.glob("tmp*")] == []
