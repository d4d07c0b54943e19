"""Which keys count, and how changes of their file are taken up."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.support.key_rings import name_of
from truthgpt_serve.access import key_ring
from truthgpt_serve.access.credentials import MAX_BYTES
from truthgpt_serve.access.key_edit import add_key, revoke_key, rotate_key
from truthgpt_serve.access.key_file import KeyFile, read_keys, reread_keys
from truthgpt_serve.access.key_ring import INTERNAL, KeyRing
from truthgpt_serve.access.last_keys import shared_file
from truthgpt_serve.access.moments import write_moment
from truthgpt_serve.errors import AuthenticationError, ConfigError

SLOW_S = 3600.0
"""So that only the test has the file read."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.yaml"


def test_keys_and_what_is_none(path: Path, rings: list[KeyRing]) -> None:
    one, two = add_key(path, {"name": "one"}), add_key(path, {"name": "two"})
    ring = KeyRing(path, period_s=SLOW_S)
    rings.append(ring)
    assert (name_of(ring, one), name_of(ring, two)) == ("one", "two")
    hashes = [entry.sha256 for entry in read_keys(path).keys]
    wrong: list[str | bytes] = [
        one[:-1],
        one + "x",
        one.upper(),
        "x",
        "é".encode(),
        b"\xff" * 9,
        *hashes,
    ]
    wrong += ["x" * MAX_BYTES, "x" * (1 << 20), f"{one} {two}", "internal-"]
    assert [name_of(ring, key) for key in wrong] == [None] * len(wrong)
    assert one not in repr(ring)
    assert hashes[0] not in repr(ring._keys)


def look(ring: KeyRing) -> None:
    """Looks twice: a change counts once it is the same in two looks."""
    ring.refresh()
    ring.refresh()


def test_changes_and_their_faults(
    path: Path, rings: list[KeyRing], caplog: pytest.LogCaptureFixture
) -> None:
    first = add_key(path, {"name": "a"})
    ring = KeyRing(path, period_s=SLOW_S)
    rings.append(ring)
    second = rotate_key(path, "a", grace_s=60)
    look(ring)
    assert (name_of(ring, first), name_of(ring, second)) == ("a", "a")
    third = rotate_key(path, "a", grace_s=0)
    look(ring)
    assert (name_of(ring, second), name_of(ring, third)) == (None, "a")
    text = path.read_text()
    with caplog.at_level(logging.ERROR):
        path.write_text(f"keys: [{{name: a, sha256: {third}}}]")
        for _ in range(3):
            look(ring)
        assert name_of(ring, third) == "a"
        assert len(caplog.records) == 1
        assert "keys[0].sha256" in caplog.text
        path.unlink()
        for _ in range(3):
            look(ring)
        assert name_of(ring, third) == "a"
        assert len(caplog.records) == 2
        assert "No such file" in caplog.text
    assert third not in caplog.text
    path.write_text(text)
    revoke_key(path, "a")
    look(ring)
    assert name_of(ring, third) is None


def test_a_file_that_is_written_in_its_place(
    path: Path, rings: list[KeyRing], caplog: pytest.LogCaptureFixture
) -> None:
    """As an editor or `cat > keys.yaml` does: it is empty, then has a part, then all."""
    keys = [add_key(path, {"name": name}) for name in "ab"]
    ring = KeyRing(path, period_s=SLOW_S)
    rings.append(ring)
    text = path.read_text()
    first = text.index("- name: b")
    with path.open("w") as file:
        for piece in ("", text[:first]):
            file.write(piece)
            file.flush()
            ring.refresh()
            assert [name_of(ring, key) for key in keys] == ["a", "b"]
        file.write(text[first:])
    third = add_key(path, {"name": "c"})
    look(ring)
    assert [name_of(ring, key) for key in (*keys, third)] == ["a", "b", "c"]
    with caplog.at_level(logging.ERROR):
        path.write_text("# the disk was full\n")
        look(ring)
        look(ring)
    assert [name_of(ring, key) for key in keys] == ["a", "b"]
    assert [record.getMessage().count("it is empty") for record in caplog.records] == [1]
    path.write_text("keys: []\n")  # so somebody wants it
    look(ring)
    assert [name_of(ring, key) for key in keys] == [None, None]


def test_faults_are_looked_for_once(
    path: Path, rings: list[KeyRing], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To find the places of a large file's faults takes seconds of computing."""
    add_key(path, {"name": "a"})
    ring = KeyRing(path, period_s=SLOW_S)
    rings.append(ring)
    reads = []

    def read(path: Path) -> KeyFile | None:
        reads.append(path)
        return reread_keys(path)

    monkeypatch.setattr(key_ring, "reread_keys", read)
    for text in ("keys: [", "keys: [x]", ""):
        path.write_text(text)
        for _ in range(5):
            ring.refresh()
    assert len(reads) == 3


def test_a_secret_that_is_mounted(tmp_path: Path, rings: list[KeyRing]) -> None:
    """Kubernetes swaps a link to the folder that holds the file."""
    keys = []
    for version in ("v1", "v2"):
        (tmp_path / version).mkdir()
        keys.append(add_key(tmp_path / version / "keys.yaml", {"name": version}))
    (tmp_path / "..data").symlink_to("v1")
    (tmp_path / "keys.yaml").symlink_to("..data/keys.yaml")
    ring = KeyRing(tmp_path / "keys.yaml", period_s=SLOW_S)
    rings.append(ring)
    assert [name_of(ring, key) for key in keys] == ["v1", None]
    (tmp_path / "new").symlink_to("v2")
    os.replace(tmp_path / "new", tmp_path / "..data")
    look(ring)
    assert [name_of(ring, key) for key in keys] == [None, "v2"]


def test_the_thread_takes_changes_up(path: Path, rings: list[KeyRing]) -> None:
    add_key(path, {"name": "a"})
    ring = KeyRing(path)
    rings.append(ring)
    key = add_key(path, {"name": "b"})
    deadline = time.monotonic() + 20
    while name_of(ring, key) is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_expiry(path: Path, rings: list[KeyRing], monkeypatch: pytest.MonkeyPatch) -> None:
    now = datetime.now(UTC)
    fields = {"name": "a", "expires": write_moment(now + timedelta(minutes=5))}
    key = add_key(path, fields)
    newer = rotate_key(path, "a", grace_s=60)
    ring = KeyRing(path, period_s=SLOW_S)
    rings.append(ring)
    assert (name_of(ring, key), name_of(ring, newer)) == ("a", "a")
    monkeypatch.setattr(time, "time", lambda: now.timestamp() + 90)
    assert (name_of(ring, key), name_of(ring, newer)) == (None, "a")
    monkeypatch.setattr(time, "time", lambda: now.timestamp() + 301)
    with pytest.raises(AuthenticationError, match="has expired"):
        ring.identify([(b"x-api-key", newer.encode())])


def test_the_services_own_processes(path: Path, rings: list[KeyRing]) -> None:
    add_key(path, {"name": "a"})
    one, other = KeyRing(path, period_s=SLOW_S), KeyRing(path, period_s=SLOW_S)
    rings += [one, other]
    headers = one.internal_headers()
    assert headers == other.internal_headers()
    assert other.identify(headers) is INTERNAL
    by_hand = path.with_name("by-hand.yaml")
    by_hand.write_text("keys: []")
    bare = KeyRing(by_hand, period_s=SLOW_S)
    rings.append(bare)
    assert bare.internal_headers() == []
    with pytest.raises(AuthenticationError):
        bare.identify(headers)


def test_a_file_that_cannot_be_used_at_the_start(path: Path) -> None:
    for text in (None, "keys: ["):
        if text is not None:
            path.write_text(text)
        with pytest.raises(ConfigError, match=str(path)):
            KeyRing(path)


def put_folder(path: Path) -> None:
    path.mkdir()


def put_circle(path: Path) -> None:
    path.symlink_to(path.name)


@pytest.mark.parametrize("put", [os.mkfifo, put_folder, put_circle])
@pytest.mark.timeout(60)
def test_what_is_no_file_leaves_the_keys_as_they_were(
    path: Path, rings: list[KeyRing], caplog: pytest.LogCaptureFixture, put: Callable[[Path], None]
) -> None:
    key = add_key(path, {"name": "one"})
    kept = path.read_bytes()
    ring = KeyRing(path, period_s=SLOW_S)
    rings.append(ring)
    path.unlink()
    put(path)
    for _ in range(3):
        ring.refresh()
    assert name_of(ring, key) == "one"
    assert caplog.text.count("the keys stay as they were") == 1
    assert not ring.is_current
    with pytest.raises(ConfigError, match=r"regular file|symbolic links"):
        read_keys(path)
    with pytest.raises(ConfigError, match="is not a regular file"):
        add_key(path, {"name": "two"})
    shared_file(path, ".yaml").unlink()
    with pytest.raises(ConfigError):
        KeyRing(path)
    path.rmdir() if path.is_dir() else path.unlink()
    path.write_bytes(kept.replace(b"one", b"new"))
    for _ in range(2):
        ring.refresh()
    assert name_of(ring, key) == "new"
    assert ring.is_current
