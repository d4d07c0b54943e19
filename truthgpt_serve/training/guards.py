"""Watches a run: losses that are no numbers, and disks that fill.

Its errors say what to do and which checkpoint is left.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from truthgpt_serve.training.errors import TrainingError
from truthgpt_serve.training.run_folder import latest_checkpoint

FreeBytes = Callable[[Path], int]
MARGIN_BYTES = 32 << 20
"""Left free beside a checkpoint: logs go on, and a disk filled to its last byte harms others."""


def free_bytes(folder: Path) -> int:
    """Returns the bytes that are free where `folder` is."""
    return shutil.disk_usage(folder).free


def check_loss(folder: Path, step: int, loss: float) -> None:
    """Checks that a loss is a number.

    Raises:
        TrainingError: It is not.
    """
    if not math.isfinite(loss):
        fix = "lower training.learning_rate or training.max_grad_norm, or look at the data"
        raise TrainingError(f"the loss of step {step} is {loss} ({fix}); {what_is_left(folder)}")


def check_space(folder: Path, num_bytes: int, free: FreeBytes = free_bytes) -> None:
    """Checks that a disk can take `num_bytes` more.

    Raises:
        TrainingError: It cannot.
    """
    available = free(folder)
    needed = num_bytes + MARGIN_BYTES
    if available < needed:
        fix = "make room, or lower training.keep_checkpoints, then continue with --resume"
        raise TrainingError(
            f"{folder}: the disk is full: {needed:,} bytes are needed, {available:,} are free "
            f"({fix}); {what_is_left(folder)}"
        )


@contextmanager
def named_disk_faults(folder: Path) -> Iterator[None]:
    """Makes one line of what a full or failing disk says while a run is prepared.

    Raises:
        TrainingError: The block raised an error of the system.
    """
    try:
        yield
    except OSError as error:
        place = f" ({error.filename})" if error.filename else ""
        raise TrainingError(f"{folder}: {error.strerror or error}{place}") from error


@contextmanager
def reading_checkpoint(folder: Path) -> Iterator[None]:
    """Has whatever is wrong with a checkpoint's files say which checkpoint it is, and what to do.

    Raises:
        TrainingError: The block raised any error of a file that is cut, of another run, or not one.
    """
    try:
        yield
    except (TrainingError, MemoryError):
        raise
    except Exception as error:
        if "out of memory" in str(error):
            raise
        fix = "remove it to go on from the one before"
        raise TrainingError(
            f"{folder}: cannot continue from this checkpoint: {error} ({fix})"
        ) from error


def what_is_left(folder: Path) -> str:
    """Returns which checkpoint a run can go on from, in words."""
    last = latest_checkpoint(folder)
    return "there is no checkpoint yet" if last is None else f"the last whole checkpoint is {last}"
