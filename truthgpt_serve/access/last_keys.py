"""The file of keys as the processes of this machine use it, for one that begins when it is broken.

A file that breaks leaves the keys as they were in the processes that run. One that is started in
place of another would have none, and with a router the whole service would end. So each keeps a
copy of what it uses, beside the counts, and marks it as in use for as long as it runs.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import tempfile
import time
from pathlib import Path

from truthgpt_serve.access.key_file import KeyFile, reread_keys
from truthgpt_serve.cluster.private_files import is_private
from truthgpt_serve.errors import ConfigError

logger = logging.getLogger(__name__)

MARK_S = 5.0
"""Between two marks of a copy that is in use."""
STALE_S = 60.0
"""A copy that was marked so long ago is nobody's any more."""


def shared_file(keys_file: Path, suffix: str = "") -> Path:
    """Returns a file that this user's processes on this machine share for a file of keys.

    Raises:
        OSError: There can be no folder for it, or it is not this user's alone.
    """
    folder = Path(tempfile.gettempdir(), f"truthgpt-quota-{os.geteuid()}")
    folder.mkdir(0o700, exist_ok=True)
    if not is_private(folder):
        raise PermissionError(f"{folder} is not this user's alone")
    name = hashlib.sha256(os.fsencode(keys_file.absolute())).hexdigest()[:32]
    return folder / f"{name}{suffix}"


class LastKeys:
    """The copy of one file.

    Args:
        keys_file: The file.
    """

    def __init__(self, keys_file: Path) -> None:
        self._keys_file = keys_file
        self._marked_s = -MARK_S
        self._problem = ""

    def read(self) -> KeyFile | None:
        """Returns what the processes that run use; None if none runs, or nothing is known."""
        try:
            copy = self._find()
            if time.time() - copy.stat().st_mtime > STALE_S:
                return None
            return reread_keys(copy)
        except (OSError, ConfigError):
            return None

    def keep(self, data: bytes) -> None:
        """Keeps what this process uses from now on."""
        try:
            copy = self._find()
            with tempfile.NamedTemporaryFile(dir=copy.parent, delete=False) as file:
                try:
                    file.write(data)
                    file.close()
                    os.replace(file.name, copy)
                except BaseException:
                    os.unlink(file.name)
                    raise
        except OSError as error:
            self._forget()
            self._report(str(error))
        else:
            self._report("")

    def mark(self, now_s: float) -> bool:
        """Says that the copy is in use; call it often.

        Args:
            now_s: The time of a monotonic clock.

        Returns:
            Whether it is there; else it is to be kept again.
        """
        if now_s - self._marked_s >= MARK_S:
            self._marked_s = now_s
            try:
                os.utime(self._find())
            except OSError:
                return False
        return True

    def _find(self) -> Path:
        return shared_file(self._keys_file, ".yaml")

    def _forget(self) -> None:
        """Removes the former copy, which may have keys that were withdrawn since."""
        with contextlib.suppress(OSError):
            self._find().unlink(missing_ok=True)

    def _report(self, problem: str) -> None:
        """Logs each problem once, as long as it lasts."""
        if problem and problem != self._problem:
            logger.warning("no copy of the keys is kept: %s", problem)
        self._problem = problem
