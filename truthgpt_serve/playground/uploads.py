"""Recordings that pages send: bounded in size, number, time and age.

Gradio's own route leaves what is broken off, or in another field, on the disk for ever.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import tempfile
import threading
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any
from urllib.parse import parse_qs

from gradio.processing_utils import hash_file
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from truthgpt_serve.body_limits import body_too_large
from truthgpt_serve.errors import OverloadedError, RequestError, SlowRequestError, TooLargeError
from truthgpt_serve.http.asgi import Receive, Scope, Send, header, send_bytes, send_json

FORM_BYTES = 65536
"""What a form has around its file."""
MAX_AT_ONCE = 8
"""Uploads that arrive at the same time."""
MAX_LARGEST = 16
"""The folder holds as many bytes as this number of the largest uploads."""
MAX_FILES = 1000
UPLOAD_S, IDLE_S = 300.0, 30.0
"""Longest time for one upload, and without any byte of it."""
PERIOD_S, KEEP_S = 600.0, 3600.0
"""How often the folder is looked through, and how long a file is kept."""
FULL_KEEP_S = 300.0
"""How long a file is kept when there is no room for another."""
MAX_NAME = 48
"""Letters of a file's name: its end, where its kind is."""
_ODD = re.compile(r"[^\w.-]")
_DONE = b'data: {"msg": "done"}\n\n'


class Uploads:
    """The folder of uploads.

    Args:
        folder: Where they are; nothing else may be there but what Gradio makes of them.
        max_bytes: The largest file.
        forget: Told which paths are removed.
        keep_s: How long a file is kept.
    """

    def __init__(
        self,
        folder: Path,
        max_bytes: int,
        forget: Callable[[set[str]], None] = lambda _: None,
        *,
        keep_s: float = KEEP_S,
        full_keep_s: float = FULL_KEEP_S,
    ) -> None:
        self._folder = folder.resolve()
        self._max_bytes = max_bytes
        self._forget = forget
        self._keep_s, self._full_keep_s = keep_s, full_keep_s
        self._most = max_bytes * MAX_LARGEST
        self._reserved: dict[int, int] = {}
        self._arriving: dict[str, asyncio.Event] = {}
        self._seen: dict[Path, float] = {}
        self._lock = threading.Lock()

    def has(self, path: Any) -> bool:
        """Returns whether a path from outside is one of an upload."""
        return isinstance(path, str) and path.startswith(f"{self._folder}/") and ".." not in path

    async def receive(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Takes the file of a form, and answers with its path as Gradio does.

        Raises:
            TruthGPTError: The form is refused; nothing of it stays.
        """
        length = header(scope["headers"], b"content-length")
        most = self._max_bytes + FORM_BYTES
        if length is not None and (not length.isdigit() or int(length) > most):
            raise self._too_large()
        if len(self._reserved) >= MAX_AT_ONCE:
            raise OverloadedError("other recordings are being uploaded: try again in a moment")
        name, done = _query(scope, "upload_id"), asyncio.Event()
        self._arriving[name] = done
        size = self._max_bytes if length is None else int(length)
        self._reserved[id(done)] = min(size, self._max_bytes)
        try:
            async with asyncio.timeout(UPLOAD_S):
                await asyncio.to_thread(self.clean, self._keep_s)
                path = await self._store(scope, self._bounded(receive, most))
        except TimeoutError:
            raise SlowRequestError(f"the upload took more than {UPLOAD_S:g} s") from None
        finally:
            del self._reserved[id(done)]
            done.set()
            if self._arriving.get(name) is done:
                del self._arriving[name]
        await send_json(send, [path])

    async def tell(self, scope: Scope, send: Send) -> None:
        """Tells a page when the upload that it names has ended."""
        done = self._arriving.get(_query(scope, "upload_id"))
        if done is not None:
            await done.wait()
        await send_bytes(send, _DONE, b"text/event-stream")

    async def watch(self, period_s: float = PERIOD_S) -> None:
        """Removes what is old, until it is cancelled."""
        while True:
            await asyncio.sleep(period_s)
            await asyncio.to_thread(self.clean, self._keep_s, check=False)

    def clean(self, keep_s: float, *, check: bool = True) -> None:
        """Removes files that are older.

        Args:
            keep_s: Their greatest age.
            check: Whether there must be room for what arrives.

        Raises:
            OverloadedError: There is none.
        """
        with self._lock:
            sizes = self._remove(keep_s)
            if check and not self._has_room(sizes):
                sizes = self._remove(min(keep_s, self._full_keep_s))
                if not self._has_room(sizes):
                    raise OverloadedError(
                        "the playground's store of recordings is full: try again in a few minutes"
                    )

    # -- internals

    def _has_room(self, sizes: list[int]) -> bool:
        reserved = list(self._reserved.values())
        num_bytes, number = sum(sizes) + sum(reserved), len(sizes) + len(reserved)
        return num_bytes <= self._most and number <= MAX_FILES

    def _remove(self, keep_s: float) -> list[int]:
        """Removes what is older and folders that are empty; returns the sizes of the others."""
        now, removed, seen, sizes = time.monotonic(), set(), {}, []
        for path in sorted(self._folder.rglob("*"), reverse=True):  # a folder after its files
            if path.is_dir() and not path.is_symlink():
                with suppress(OSError):  # it has files
                    path.rmdir()
                continue
            since = self._seen.get(path, now)  # not its times: each use of the file renews them
            if path in self._seen and now - since >= keep_s:
                path.unlink(missing_ok=True)
                removed.add(str(path))
            else:
                seen[path] = since
                sizes.append(_size(path))
        self._seen = seen
        self._forget(removed)
        return sizes

    async def _bounded(self, receive: Receive, most: int) -> AsyncGenerator[bytes, None]:
        """Yields the pieces of a body."""
        size, more = 0, True
        while more:
            try:
                async with asyncio.timeout(IDLE_S):
                    message = await receive()
            except TimeoutError:
                raise SlowRequestError(f"no data of the upload arrived for {IDLE_S:g} s") from None
            if message["type"] != "http.request":
                raise RequestError("the upload was broken off")
            piece = message.get("body", b"")
            size += len(piece)
            if size > most:
                raise self._too_large()
            yield piece
            more = message.get("more_body", False)
            await asyncio.sleep(0)

    async def _store(self, scope: Scope, pieces: AsyncGenerator[bytes, None]) -> str:
        headers = Headers(raw=scope["headers"])
        if not headers.get("content-type", "").startswith("multipart/form-data"):
            raise RequestError("an upload is a form: send `content-type: multipart/form-data`")
        try:
            # Its temporary file has no name, so that nothing is left of what breaks off.
            form = await MultiPartParser(headers, pieces, max_files=1, max_fields=0).parse()
        except MultiPartException as error:
            raise RequestError(f"the form cannot be read: {error.message}") from None
        try:
            file = form.get("files")
            if not isinstance(file, UploadFile):
                raise RequestError("the form has no file `files`")
            if (file.size or 0) > self._max_bytes:
                raise self._too_large()
            return await asyncio.to_thread(self._keep, file.file, file.filename or "")
        finally:
            await form.close()

    def _keep(self, file: IO[bytes], filename: str) -> str:
        """Returns the path of a copy, which is where Gradio looks for it: below its hash."""
        name = _ODD.sub("_", filename)[-MAX_NAME:].lstrip(".") or "recording"
        with self._lock, tempfile.NamedTemporaryFile(dir=self._folder) as copy:
            shutil.copyfileobj(file, copy)
            copy.flush()
            path = self._folder / hash_file(copy.name) / name
            path.parent.mkdir(exist_ok=True)
            path.unlink(missing_ok=True)
            path.hardlink_to(copy.name)
            self._seen[path] = time.monotonic()
        return str(path)

    def _too_large(self) -> TooLargeError:
        return body_too_large(self._max_bytes, "the playground's `max_upload_bytes`")


def _query(scope: Scope, name: str) -> str:
    text: str = (scope.get("query_string") or b"").decode("latin-1")
    try:
        return parse_qs(text, max_num_fields=8).get(name, [""])[0]
    except ValueError:
        return ""


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except FileNotFoundError:
        return 0
