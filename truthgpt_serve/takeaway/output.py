"""Where a conversion writes: beside its place, renamed when it is whole, never over another."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from truthgpt_serve.config.paths import expand
from truthgpt_serve.takeaway.errors import TakeawayError
from truthgpt_serve.training.guards import MARGIN_BYTES, FreeBytes, free_bytes
from truthgpt_serve.training.run_folder import replace_folder


def check_output(out: Path, *, force: bool, source: Path) -> Path:
    """Returns the absolute path of a folder that may be written.

    Args:
        out: The wanted folder.
        force: Whether what is there is replaced.
        source: What is read, which `out` must not hold or be.

    Raises:
        TakeawayError: It is there, or cannot be.
    """
    out = expand(out).absolute()
    whole = out.resolve()
    if source.resolve().is_relative_to(whole):
        raise TakeawayError(f"{out}: holds what is read (name another folder with --out)")
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise TakeawayError(f"{out}: is no folder (name another one with --out)")
    if out.exists() and not force:
        fix = "name another folder with --out, or replace it with --force"
        raise TakeawayError(f"{out}: exists already ({fix})")
    return out


def check_room(folder: Path, num_bytes: int, free: FreeBytes = free_bytes) -> None:
    """Checks that the disk of `folder`, which need not be there yet, can take `num_bytes`.

    Raises:
        TakeawayError: It cannot.
    """
    place = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
    available, needed = free(place), num_bytes + MARGIN_BYTES
    if available < needed:
        fix = "make room, or name a folder on another disk with --out"
        message = f"{needed:,} bytes are needed, {available:,} are free"
        raise TakeawayError(f"{folder}: the disk is full: {message} ({fix})")


@contextmanager
def writing(out: Path) -> Iterator[Path]:
    """Gives an empty folder beside `out`, which takes its place at the end.

    Whatever was at `out` stays until then, and for good when the block raises.

    Raises:
        TakeawayError: The disk refuses.
    """
    unfinished = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
    except OSError as error:
        raise TakeawayError(f"{out}: cannot be written: {error.strerror}") from error
    try:
        yield unfinished
        replace_folder(unfinished, out)
    except OSError as error:
        reason = error.strerror or str(error)
        raise TakeawayError(f"{out}: cannot be written: {reason}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
