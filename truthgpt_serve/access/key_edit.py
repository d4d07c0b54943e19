"""Changes the file with the keys: one writer at a time, and whole at any moment for its readers."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml

from truthgpt_serve.access.credentials import create_key, digest
from truthgpt_serve.access.key_file import MAX_KEYS, FormerKey, KeyEntry, KeyFile, read_keys
from truthgpt_serve.access.moments import write_moment
from truthgpt_serve.config.parse import parse
from truthgpt_serve.config.source import MAX_FILE_BYTES, Source
from truthgpt_serve.errors import ConfigError, Fault
from truthgpt_serve.wording import hide_keys, suggest

_FULL = (errno.ENOSPC, errno.EDQUOT)
_HEAD = """\
# Keys of the service's clients, as SHA-256: none can be read from here. `truthgpt keys` writes this
# file and keeps no comments. The service reads it again when it changes (docs/keys.md).
"""


def add_key(path: Path, fields: dict[str, Any]) -> str:
    """Adds a key, in a new file where there is none, and returns it.

    Args:
        path: The file.
        fields: Of `KeyEntry`, without the SHA-256.

    Raises:
        ConfigError: A field is wrong, the name is taken, or the file cannot be used.
    """
    if hide_keys(name := str(fields["name"])) != name:
        fix = "choose one, which stands in logs and metrics in the place of the key"
        raise ConfigError([Fault("the key's name", "is a key itself", fix)])
    key = create_key()
    given = {**fields, "sha256": _hash(key), "created": write_moment(datetime.now(UTC))}
    entry, faults, _ = parse(KeyEntry, given, Source("the key"))
    if entry is None or faults:
        raise ConfigError(faults)
    with _changing(path) as file:
        if any(entry.name == other.name for other in file.keys):
            fix = f"revoke it, rotate it, or take another name: truthgpt keys rotate {entry.name}"
            raise ConfigError([Fault(str(path), f"has a key {entry.name!r} already", fix)])
        if len(file.keys) >= MAX_KEYS:
            raise ConfigError([Fault(str(path), f"has {MAX_KEYS} keys, the most there can be")])
        file.keys.append(entry)
    return key


def revoke_key(path: Path, name: str) -> None:
    """Removes a key.

    Raises:
        ConfigError: There is none of this name, or the file cannot be used.
    """
    with _changing(path, must_exist=True) as file:
        file.keys.remove(_find(file, name, path))


def rotate_key(path: Path, name: str, grace_s: float) -> str:
    """Puts a new key in the place of one, and returns it.

    Args:
        path: The file.
        name: Which.
        grace_s: How long the former key still works, in seconds.

    Raises:
        ConfigError: There is none of this name, or the file cannot be used.
    """
    key, now = create_key(), datetime.now(UTC)
    with _changing(path, must_exist=True) as file:
        entry = _find(file, name, path)
        entry.previous = None
        if grace_s > 0:
            until = write_moment(now + timedelta(seconds=grace_s))
            entry.previous = FormerKey(sha256=entry.sha256, until=until)
        entry.sha256, entry.created = _hash(key), write_moment(now)
    return key


def _hash(key: str) -> str:
    return digest(key.encode()).hex()


def _find(file: KeyFile, name: str, path: Path) -> KeyEntry:
    for entry in file.keys:
        if entry.name == name:
            return entry
    fix = suggest(name, [entry.name for entry in file.keys])
    raise ConfigError([Fault(str(path), f"has no key {name[:80]!r}", fix)])


@contextmanager
def _changing(path: Path, *, must_exist: bool = False) -> Iterator[KeyFile]:
    """Gives the file's content to be changed, and writes it if the block does not fail."""
    path = Path(os.path.realpath(path))  # what a link leads to is written, not the link
    if os.path.lexists(path) and not path.is_file():  # a device or a link in a circle would be lost
        raise ConfigError([Fault(str(path), "is not a regular file", "name another")])
    try:
        with _locked(path):
            file = read_keys(path) if must_exist or path.exists() else KeyFile()
            yield file
            if file.internal_secret is None:
                file.internal_secret = secrets.token_hex(32)
            _write(path, file)
    except OSError as error:
        message = f"cannot be written: {error.strerror}"
        fix = f"make room in {path.parent}" if error.errno in _FULL else ""
        raise ConfigError([Fault(str(path), message, fix)]) from error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds a lock beside the file, which is another one after each change."""
    lock = path.with_name(f".{path.name}.lock")
    descriptor = os.open(lock, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        _keep_owner(descriptor, path)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _keep_owner(descriptor: int, path: Path) -> None:
    """Gives a new file to whom the file with the keys belongs, as far as this user may.

    The service could not read what another user, such as root, has written for itself alone.
    """
    if path.exists():
        owner = path.stat()
        with suppress(PermissionError):  # the group, where this user is in it, and the user
            os.fchown(descriptor, -1, owner.st_gid)
            os.fchown(descriptor, owner.st_uid, -1)


def _write(path: Path, file: KeyFile) -> None:
    data = file.model_dump(exclude_none=True, exclude_defaults=True)
    text = _HEAD + yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
    if len(text.encode()) > MAX_FILE_BYTES:  # nobody could read it, and revoke a key
        message = f"would be larger than {MAX_FILE_BYTES} bytes, the most it can be"
        raise ConfigError([Fault(str(path), message, "revoke keys, or shorten their `models`")])
    mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else 0o600
    descriptor, draft = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(descriptor, "w", encoding="utf-8") as stream:
            _keep_owner(descriptor, path)
            os.fchmod(descriptor, mode)
            stream.write(text)
            stream.flush()
            os.fsync(descriptor)
        os.replace(draft, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(draft)
        raise
