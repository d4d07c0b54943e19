"""Changes of the file: whole, private, one at a time."""

from __future__ import annotations

import errno
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from truthgpt_serve.access.credentials import digest
from truthgpt_serve.access.key_edit import add_key, revoke_key, rotate_key
from truthgpt_serve.access.key_file import read_keys
from truthgpt_serve.errors import ConfigError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.yaml"


def test_a_key_is_kept_as_its_hash(path: Path) -> None:
    key = add_key(path, {"name": "a", "models": ["m"], "priority": 2})
    (entry,) = read_keys(path).keys
    assert entry.sha256 == digest(key.encode()).hex()
    assert (entry.models, entry.priority) == (["m"], 2)
    assert key not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sorted(file.name for file in path.parent.iterdir()) == [".keys.yaml.lock", "keys.yaml"]


def test_many_writers(path: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        keys = list(threads.map(lambda n: add_key(path, {"name": f"k{n}"}), range(16)))
    found = {entry.sha256 for entry in read_keys(path).keys}
    assert found == {digest(key.encode()).hex() for key in keys}
    assert read_keys(path).internal_secret is not None


def test_rotation(path: Path) -> None:
    first = add_key(path, {"name": "a", "max_concurrent": 4})
    secret = read_keys(path).internal_secret
    second = rotate_key(path, "a", grace_s=60)
    (entry,) = read_keys(path).keys
    assert entry.sha256 == digest(second.encode()).hex()
    assert entry.previous is not None
    assert entry.previous.sha256 == digest(first.encode()).hex()
    assert entry.max_concurrent == 4
    rotate_key(path, "a", grace_s=0)
    file = read_keys(path)
    assert file.keys[0].previous is None
    assert file.internal_secret == secret


def test_revocation(path: Path) -> None:
    add_key(path, {"name": "a"})
    add_key(path, {"name": "b"})
    revoke_key(path, "a")
    assert [entry.name for entry in read_keys(path).keys] == ["b"]
    for change in (lambda: revoke_key(path, "bb"), lambda: rotate_key(path, "bb", 0)):
        with pytest.raises(ConfigError, match=r"has no key 'bb' \(did you mean 'b'\?\)"):
            change()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "a"}, "has a key 'a' already"),
        ({"name": "a b"}, "name: 'a b' is not usable"),
        ({"name": "n" * 65}, "name: must have at most 64"),
        ({"name": "b", "max_concurrent": 0}, "max_concurrent: must be at least 1"),
    ],
)
def test_refusals_change_nothing(path: Path, fields: dict[str, object], message: str) -> None:
    add_key(path, {"name": "a"})
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=message) as raised:
        add_key(path, fields)
    assert len(raised.value.faults) == 1
    assert path.read_bytes() == before


def test_a_key_is_no_name(path: Path) -> None:
    key = add_key(path, {"name": "a"})
    with pytest.raises(ConfigError, match="the key's name: is a key itself") as caught:
        add_key(path, {"name": key})
    assert key not in str(caught.value)
    assert key not in path.read_text()


def test_a_link_and_a_mode_stay(path: Path, tmp_path: Path) -> None:
    real = tmp_path / "real.yaml"
    add_key(real, {"name": "a"})
    real.chmod(0o640)
    path.symlink_to(real)
    add_key(path, {"name": "b"})
    assert path.is_symlink()
    assert len(read_keys(real).keys) == 2
    assert stat.S_IMODE(real.stat().st_mode) == 0o640


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_the_owner_stays(path: Path) -> None:
    """What root writes beside a service of another user would be shut to that service."""
    add_key(path, {"name": "a"})
    os.chown(path, 65534, 65533)
    path.with_name(".keys.yaml.lock").unlink()
    rotate_key(path, "a", 60)
    for file in path.parent.iterdir():
        assert (file.stat().st_uid, file.stat().st_gid) == (65534, 65533), file
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_another_owner_is_no_fault(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    add_key(path, {"name": "a"})
    monkeypatch.setattr(os, "fchown", refuse)
    revoke_key(path, "a")
    assert read_keys(path).keys == []


def test_a_broken_file_is_not_written_over(path: Path) -> None:
    path.write_text("keys: [")
    with pytest.raises(ConfigError, match="is not valid YAML"):
        add_key(path, {"name": "a"})
    assert path.read_text() == "keys: ["


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be written: No such file or directory"):
        add_key(tmp_path / "none" / "keys.yaml", {"name": "a"})
    with pytest.raises(ConfigError, match="cannot be read"):
        revoke_key(tmp_path / "none.yaml", "a")
    assert "none.yaml" not in os.listdir(tmp_path)


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    """As root `--file /dev/null` would else have a file in the place of the device."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "link").symlink_to(pipe)
    for path in (pipe, tmp_path / "link", tmp_path):
        with pytest.raises(ConfigError, match="is not a regular file"):
            add_key(path, {"name": "a"})
    assert pipe.is_fifo()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "pipe"]


def test_a_file_that_nobody_could_read_is_not_written(path: Path) -> None:
    models = [f"{number:03d}{'m' * 250}" for number in range(250)]
    entries = [
        {"name": f"k{number}", "models": models, "sha256": f"{number:064x}"} for number in range(16)
    ]
    path.write_text(yaml.safe_dump({"keys": entries}))
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="would be larger than 1048576 bytes"):
        add_key(path, {"name": "a", "models": models})
    assert path.read_bytes() == before
    revoke_key(path, "k0")


def test_a_full_disk_leaves_the_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_key(path, {"name": "a"})
    before, names = path.read_bytes(), os.listdir(path.parent)

    def fsync(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(ConfigError, match=rf"No space left.*make room in {path.parent}"):
        rotate_key(path, "a", 0)
    assert (path.read_bytes(), os.listdir(path.parent)) == (before, names)
