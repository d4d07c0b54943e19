"""The folder of one run: its checkpoints, its record and its lock.

A kill at any moment leaves whole files: everything is written beside its place and renamed.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from truthgpt_serve.training.errors import TrainingError

CHECKPOINTS = "checkpoints"
SHARDS = "shards"
"""Folder of a checkpoint of `training.fsdp`: each worker's part of weights and optimizer."""
LOGS = "logs"
MODEL = "model"
DATA = "data"
RECORD = "run.json"
STOP = ".stop"
"""A file whose presence asks the loop to save and stop; the folder is shared by all workers."""
ORPHANS_TIMEOUT_S = 60.0
POLL_S = 0.1
_LOCK = ".lock"
_OWNER = ".owner"
_WORKING = ".working"
_STEP = re.compile(r"step-(\d+)")


def step_of(checkpoint: Path) -> int:
    """Returns the number of optimizer steps behind a checkpoint."""
    return int(checkpoint.name.removeprefix("step-"))


def checkpoints(folder: Path) -> list[Path]:
    """Returns the whole checkpoints of a run, oldest first."""
    if not (folder / CHECKPOINTS).is_dir():
        return []
    found = [p for p in (folder / CHECKPOINTS).iterdir() if _STEP.fullmatch(p.name) and p.is_dir()]
    return sorted(found, key=step_of)


def latest_checkpoint(folder: Path) -> Path | None:
    """Returns the newest whole checkpoint, or None."""
    found = checkpoints(folder)
    return found[-1] if found else None


def begin_checkpoint(folder: Path, step: int) -> Path:
    """Returns the empty folder that a checkpoint is written into; see `finish_checkpoint`."""
    unfinished = folder / CHECKPOINTS / f".step-{step}.tmp"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    return unfinished


def finish_checkpoint(unfinished: Path) -> Path:
    """Makes a checkpoint that is whole a valid one, also after a power cut; returns its folder."""
    final = unfinished.with_name(unfinished.name.removeprefix(".").removesuffix(".tmp"))
    replace_folder(unfinished, final)
    return final


def replace_folder(unfinished: Path, final: Path) -> None:
    """Moves a folder that is whole to its place, in place of what is there.

    Its files can then be read by whom the umask allows to: weights are written for their owner
    alone, and who serves them may be another.
    """
    umask = os.umask(0)
    os.umask(umask)
    for file in sorted(unfinished.rglob("*")):
        file.chmod(file.stat().st_mode | (0o444 & ~umask))
        _sync(file)
    _sync(unfinished)
    if final.exists():
        old = final.with_name(f".{final.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        final.rename(old)
        unfinished.rename(final)
        shutil.rmtree(old, ignore_errors=True)
    else:
        unfinished.rename(final)
    _sync(final.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def prune_checkpoints(folder: Path, keep: int, *, also: Iterable[int] = ()) -> None:
    """Removes all but the newest `keep` checkpoints, those of the steps `also`, and leftovers."""
    kept = set(also)
    for checkpoint in checkpoints(folder)[:-keep]:
        if step_of(checkpoint) not in kept:
            # Renamed first: a kill in the middle of the removal must not leave half a checkpoint.
            doomed = checkpoint.with_name(f".{checkpoint.name}.old")
            checkpoint.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)
    remove_leftovers(folder)


def remove_leftovers(folder: Path) -> None:
    """Removes what a killed run left half written."""
    for parent in (folder / CHECKPOINTS, folder):
        if parent.is_dir():
            for path in parent.iterdir():
                if path.name.startswith(".") and path.name.endswith((".tmp", ".old")):
                    shutil.rmtree(path, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Writes a file so that it is there whole or not at all."""
    write_text_file(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text_file(path: Path, text: str) -> None:
    """Writes a text in the same way."""
    unfinished = path.with_name(f".{path.name}.part")
    unfinished.write_text(text, encoding="utf-8")
    _sync(unfinished)
    unfinished.replace(path)


def read_json(path: Path) -> Any:
    """Returns what a JSON file holds, or None if there is none.

    Raises:
        TrainingError: It is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        fix = "start a new run with --out, or remove the folder"
        raise TrainingError(f"{path}: cannot be read: {error} ({fix})") from error


@contextmanager
def locked(folder: Path) -> Iterator[str]:
    """Holds the run's folder for one command, so that no second one writes into it.

    Yields:
        The command's token, which is in the folder as long as it is the last one: see `is_owner`.

    Raises:
        TrainingError: The folder cannot be made, or another process holds it.
    """
    token = uuid.uuid4().hex
    with _opened(folder, _LOCK) as stream:
        if not _try_lock(stream):
            fix = "wait for it, or choose another folder with --out"
            raise TrainingError(f"{folder}: another run is writing into it ({fix})")
        _wait_for_workers(folder, token)
        yield token


def _wait_for_workers(folder: Path, token: str) -> None:
    """Waits until the workers of a killed command are gone: they end when they see the token."""
    write_json(folder / _OWNER, token)
    with _opened(folder, _WORKING) as stream:
        deadline = time.monotonic() + ORPHANS_TIMEOUT_S
        while not _try_lock(stream):
            if time.monotonic() > deadline:
                fix = "end them, then try again"
                raise TrainingError(f"{folder}: workers of a killed run still use it ({fix})")
            time.sleep(POLL_S)


def is_owner(folder: Path, token: str) -> bool:
    """Returns whether no later command has taken the folder over."""
    return bool(read_json(folder / _OWNER) == token)


@contextmanager
def working(folder: Path) -> Iterator[None]:
    """Marks the folder as being written by a worker; to be held by rank 0 while it trains.

    A worker outlives a killed command for a moment. The next one waits for it.
    """
    with _opened(folder, _WORKING) as stream:
        _try_lock(stream)
        yield


@contextmanager
def _opened(folder: Path, name: str) -> Iterator[TextIO]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = (folder / name).open("w")
    except OSError as error:
        raise TrainingError(f"{folder}: cannot be used: {error.strerror}") from error
    with stream:
        yield stream


def _try_lock(stream: TextIO) -> bool:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
