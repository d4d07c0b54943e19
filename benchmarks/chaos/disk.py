"""A small disk for the files of the service, which can be filled; needs root.

It is a tmpfs in a mount namespace of this process, which the service inherits: nothing else on the
machine sees it, and it goes with the last process in it (mount_namespaces(7)).
"""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
from pathlib import Path

CLONE_NEWNS = 0x20000
SIZE = "256m"
BLOCK_BYTES = 1 << 20


class SmallDisk:
    """The disk.

    Args:
        folder: An empty folder, on which it is mounted.

    Raises:
        OSError: This process may not mount, with the reason.
    """

    def __init__(self, folder: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(CLONE_NEWNS):
            number = ctypes.get_errno()
            raise OSError(number, f"no mount namespace: {os.strerror(number)}")
        _run("mount", "--make-rprivate", "/")
        _run("mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder))
        self._folder = folder

    @property
    def _file(self) -> Path:
        return self._folder / "filler"

    def fill(self) -> None:
        """Takes all that is free, to the last byte."""
        fill_disk(self._file)

    def free(self) -> None:
        """Gives it back."""
        self._file.unlink(missing_ok=True)

    def close(self) -> None:
        """Unmounts it, once nothing uses it."""
        _run("umount", "--lazy", str(self._folder))


def fill_disk(path: Path) -> None:
    """Writes a file until not one byte more fits on its disk."""
    with path.open("wb", buffering=0) as file:
        size = BLOCK_BYTES
        while size:
            try:
                file.write(b"x" * size)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                size //= 16


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(errno.EPERM, f"{' '.join(command)}: {done.stderr.strip()}")
