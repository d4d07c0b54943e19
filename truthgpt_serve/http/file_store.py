"""Files that are kept for a limited time and fetched by an id that cannot be guessed.

`shared_files` keeps them for a whole cluster.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from cachetools import Cache, TLRUCache

from truthgpt_serve.errors import ExpiredFileError, MissingFileError, ServerError

FILES_PATH = "/v1/files/images/"
"""Where files are served, below the root of an application or of the router."""

EXTENSIONS = {"image/png": "png", "image/jpeg": "jpeg", "image/webp": "webp"}
"""The types of files that are kept, and how their ids end."""

_FILE_ID = re.compile(r"[0-9a-f]{48}-(\d{1,12})\.(?:png|jpeg|webp)")


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file.

    Attributes:
        data: The bytes.
        content_type: Their media type.
        expires_at_s: When it is dropped, in seconds since the epoch.
    """

    data: bytes
    content_type: str
    expires_at_s: float

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Returns what an HTTP answer with this file says of it besides its type and length."""
        rest_s = max(0, int(self.expires_at_s - time.time()))
        return [
            (b"cache-control", b"private, max-age=%d, immutable" % rest_s),
            (b"x-content-type-options", b"nosniff"),
        ]


class FileStore(Protocol):
    """Where files lie."""

    async def put(
        self, data: bytes, content_type: str, *, group: str, expiry_s: float, max_bytes: int
    ) -> str:
        """Keeps a file and returns its id.

        Args:
            data: The bytes.
            content_type: One of `EXTENSIONS`.
            group: Whose file it is; each group has its own room.
            expiry_s: Seconds for which it can be fetched.
            max_bytes: Room of the group; its oldest files go first.

        Raises:
            ServerError: The file alone is larger than the room, or the store does not answer.
        """

    async def get(self, file_id: str) -> StoredFile | None:
        """Returns a file, or None when it is not there (any more).

        Raises:
            ServerError: The store does not answer.
        """


async def fetch_file(store: FileStore, file_id: str) -> StoredFile:
    """Returns a file.

    Raises:
        MissingFileError: There is none with this id.
        ExpiredFileError: There was, or may have been, but its time is over.
        ServerError: The store does not answer.
    """
    match = _FILE_ID.fullmatch(file_id)
    if match is None:
        raise MissingFileError(f"there is no file {file_id[:80]!r}")
    found = await store.get(file_id)
    if found is not None:
        return found
    # The id says until when, so nothing has to be remembered of files that are gone.
    if int(match[1]) <= time.time():
        raise ExpiredFileError(f"the file {file_id!r} has expired; make the image again")
    raise MissingFileError(
        f"there is no file {file_id!r}: it made room for newer ones, or the service was restarted"
    )


def create_file_id(content_type: str, expires_at_s: float) -> str:
    """Returns an id with 192 random bits."""
    return f"{secrets.token_hex(24)}-{int(expires_at_s)}.{EXTENSIONS[content_type]}"


def check_room(num_bytes: int, max_bytes: int) -> None:
    """Raises ServerError for a file that is larger than its group's whole room."""
    if num_bytes > max_bytes:
        raise ServerError(
            f"the result has {num_bytes} bytes, more than `serving.images.max_stored_bytes` "
            f"({max_bytes}) lets be stored: raise it, or ask for b64_json"
        )


class FileShelf:
    """Files in memory, by group; one thread at a time.

    Args:
        clock: Returns the time in seconds since the epoch.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._groups: dict[str, TLRUCache[str, StoredFile]] = {}

    @property
    def num_bytes(self) -> int:
        """Bytes of all files."""
        return int(sum(files.currsize for files in self._groups.values()))

    def put(self, file_id: str, file: StoredFile, *, group: str, max_bytes: int) -> None:
        """Keeps a file; the oldest ones of its group make room for it."""
        self.purge()
        files = self._groups.get(group)
        if files is None or files.maxsize != max_bytes:
            kept = () if files is None else list(files.items())
            files = TLRUCache(max_bytes, _expiry, self._clock, lambda file: len(file.data))
            files.update(kept)
            self._groups[group] = files
        files[file_id] = file

    def get(self, file_id: str) -> StoredFile | None:
        """Returns a file that has not expired, or None."""
        for files in self._groups.values():
            if file_id in files:
                # The cache's own `get` would make the file the newest.
                return Cache.__getitem__(files, file_id)
        return None

    def purge(self) -> None:
        """Drops what has expired."""
        for files in self._groups.values():
            files.expire()


def _expiry(_file_id: str, file: StoredFile, _now_s: float) -> float:
    return file.expires_at_s


class LocalFileStore:
    """Files in the memory of this process; for one event loop."""

    def __init__(self) -> None:
        self._shelf = FileShelf()

    @property
    def num_bytes(self) -> int:
        """Bytes of all files."""
        return self._shelf.num_bytes

    async def put(
        self, data: bytes, content_type: str, *, group: str, expiry_s: float, max_bytes: int
    ) -> str:
        """See `FileStore.put`."""
        check_room(len(data), max_bytes)
        expires_at_s = time.time() + expiry_s
        file_id = create_file_id(content_type, expires_at_s)
        self.keep(file_id, StoredFile(data, content_type, expires_at_s), group, max_bytes)
        return file_id

    def keep(self, file_id: str, file: StoredFile, group: str, max_bytes: int) -> None:
        """Keeps a file under an id that exists already; frees it in time, also without requests."""
        self._shelf.put(file_id, file, group=group, max_bytes=max_bytes)
        delay_s = max(0.0, file.expires_at_s - time.time()) + 0.1
        asyncio.get_running_loop().call_later(delay_s, self._shelf.purge)

    async def get(self, file_id: str) -> StoredFile | None:
        """See `FileStore.get`."""
        return self._shelf.get(file_id)
