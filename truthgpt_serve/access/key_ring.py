"""The keys that count now: found by their SHA-256, and read again when their file changes."""

from __future__ import annotations

import contextlib
import hmac
import logging
import math
import os
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from truthgpt_serve.access.credentials import MAX_BYTES, digest, read_credential
from truthgpt_serve.access.identity import Identity, Limits
from truthgpt_serve.access.key_file import KeyFile, read_bytes, read_keys, reread_keys
from truthgpt_serve.access.last_keys import LastKeys
from truthgpt_serve.access.moments import read_moment
from truthgpt_serve.errors import AuthenticationError, ConfigError

logger = logging.getLogger(__name__)

PERIOD_S = 0.5
"""How often the file is looked at: a change counts within twice that, and the time to read it, once
it has not changed from one look to the next."""
INTERNAL = Identity("-internal", is_internal=True)
"""A process of the service; no key can have this name."""
_INDEX_BYTES = 8
_NO_DIGEST = bytes(32)
_WRONG = "the API key is wrong"
_EMPTY = "it is empty"


@dataclass(frozen=True, slots=True, repr=False)
class _Key:
    digest: bytes
    identity: Identity
    until_s: float


@dataclass(frozen=True, slots=True, repr=False)
class _Keys:
    """One state of the file.

    Attributes:
        by_index: The keys by the first bytes of their SHA-256, from which no key can be told.
        internal: The key of the service's own processes, or None.
    """

    by_index: MappingProxyType[bytes, _Key] = field(default_factory=lambda: MappingProxyType({}))
    internal: bytes | None = None


class KeyRing:
    """The keys of a file; a thread looks whether it has changed.

    A file that breaks or goes away later leaves the keys as they were, also for a process that is
    started then, as long as another one uses them.

    Args:
        path: The file.
        period_s: How often it is looked at, in seconds.

    Raises:
        ConfigError: The file cannot be used, and no process does.
    """

    def __init__(self, path: Path, *, period_s: float = PERIOD_S) -> None:
        self._path = path
        self._period_s = period_s
        self._last = LastKeys(path)
        self._looked: tuple[int, ...] | None = None
        self._refused: tuple[int, ...] | None = None
        self._reported = ""
        # Before it is read: what changes meanwhile is seen the next time.
        self._seen = _signature(path) if path.exists() else None
        self._keys = _index(self._begin())
        self._closed = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="keys", daemon=True)
        self._watcher.start()

    def __repr__(self) -> str:
        return f"KeyRing({str(self._path)!r})"

    def close(self) -> None:
        """Ends the thread."""
        self._closed.set()
        self._watcher.join(timeout=5)

    def identify(self, headers: Iterable[tuple[bytes, bytes]]) -> Identity:
        """Returns who sends a request with these headers.

        Args:
            headers: Names in lower case.

        Raises:
            AuthenticationError: It carries no key that counts.
        """
        credential = read_credential(headers)
        if len(credential) > MAX_BYTES:
            raise AuthenticationError(_WRONG)
        given = digest(credential)
        key = self._keys.by_index.get(given[:_INDEX_BYTES])
        if not hmac.compare_digest(given, _NO_DIGEST if key is None else key.digest) or key is None:
            raise AuthenticationError(_WRONG)
        if key.until_s != math.inf and time.time() >= key.until_s:
            raise AuthenticationError("the API key has expired")
        return key.identity

    @property
    def is_current(self) -> bool:
        """Whether the file could be used at the last look; else the keys stay as they were."""
        return not self._reported

    def limits(self) -> dict[str, Limits]:
        """Returns the limits of all keys by their names, those of single models aside."""
        keys = (key.identity for key in self._keys.by_index.values())
        return {identity.name: identity.limits for identity in keys}

    def internal_headers(self) -> list[tuple[bytes, bytes]]:
        """Returns the headers with which a process of the service asks another."""
        key = self._keys.internal
        return [] if key is None else [(b"authorization", b"Bearer " + key)]

    def refresh(self) -> None:
        """Reads the file again if it has changed, but not since the last look.

        One that is written in its place is empty at first, and then valid with a part of its keys.
        """
        try:
            seen = _signature(self._path)
            if seen == self._seen:
                self._report("")
            elif seen != self._looked:
                self._looked = seen
            elif seen != self._refused:  # what has faults is not read again until it changes
                self._read(seen)
        except OSError as error:
            self._report(_reason(error))

    def _begin(self) -> KeyFile:
        file, problem = self._load()
        if file is None:
            last = self._last.read()
            if last is not None:
                self._seen = None
                self._report(problem)
                return last
            file = read_keys(self._path)  # names all faults; an empty file has no keys
        self._keep()
        return file

    def _load(self) -> tuple[KeyFile | None, str]:
        """Returns what the file holds, or None and why it cannot be used."""
        try:
            file = reread_keys(self._path)
        except ConfigError as error:
            return None, _places(error)
        except OSError as error:
            return None, _reason(error)
        return file, "" if file is not None else _EMPTY

    def _keep(self) -> None:
        """Keeps a copy of the file as it is used, unless it has changed since."""
        with contextlib.suppress(OSError):
            data = read_bytes(self._path)
            if _signature(self._path) == self._seen:
                self._last.keep(data)

    def _mark(self) -> None:
        if not self._last.mark(time.monotonic()):
            self._keep()

    def _read(self, seen: tuple[int, ...]) -> None:
        try:
            file = reread_keys(self._path)
        except ConfigError as error:
            self._refuse(seen, _places(error))
            return
        if file is None:
            self._refuse(seen, _EMPTY)
        elif _signature(self._path) == seen:
            self._seen, self._keys = seen, _index(file)
            self._keep()
            self._report("")
            logger.info("read the keys anew from %s", self._path)

    def _refuse(self, seen: tuple[int, ...], problem: str) -> None:
        self._refused = seen
        self._report(problem)

    def _watch(self) -> None:
        while not self._closed.wait(self._period_s):
            try:
                self.refresh()
                self._mark()
            except Exception as error:  # the keys stay as they are, whatever it was
                self._report(type(error).__name__)

    def _report(self, problem: str) -> None:
        """Logs each problem once, as long as it lasts."""
        if problem and problem != self._reported:
            logger.error(
                "the keys stay as they were, because %s cannot be used now: %s; "
                "`truthgpt keys list` says more",
                self._path,
                problem,
            )
        self._reported = problem


def _places(error: ConfigError) -> str:
    """Says where it is wrong without showing what the file holds."""
    places = [fault.place for fault in error.faults]
    return ", ".join(places[:3]) + (f" and {len(places) - 3} more" if len(places) > 3 else "")


def _reason(error: OSError) -> str:
    return error.strerror or type(error).__name__


def _signature(path: Path) -> tuple[int, ...]:
    """Returns what changes with the file, and when a link to it leads elsewhere."""
    found = os.stat(path)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _index(file: KeyFile) -> _Keys:
    found = []
    for entry in file.keys:
        identity = entry.to_identity(
            file.cached_token_weight, has_own_cache=file.separate_prefix_caches
        )
        found.append(_Key(bytes.fromhex(entry.sha256), identity, identity.expires_s))
        if (former := entry.previous) is not None:
            until_s = min(read_moment(former.until).timestamp(), identity.expires_s)
            found.append(_Key(bytes.fromhex(former.sha256), identity, until_s))
    internal = None
    if file.internal_secret is not None:
        secret = bytes.fromhex(file.internal_secret)
        internal = b"internal-" + hmac.digest(secret, b"truthgpt-internal", "sha256").hex().encode()
        found.append(_Key(digest(internal), INTERNAL, math.inf))
    return _Keys(MappingProxyType({key.digest[:_INDEX_BYTES]: key for key in found}), internal)
