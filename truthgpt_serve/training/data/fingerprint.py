"""Fingerprints data, so that a run continues only with the data it began with.

Only bytes and names count.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from truthgpt_serve.config.paths import expand
from truthgpt_serve.training.data.inventory import Inventory, shown
from truthgpt_serve.training.data.sources import Dataset, is_local, local_paths, names_of
from truthgpt_serve.training.data.splits import TRAIN, VALIDATION
from truthgpt_serve.training.data.walk import Walk
from truthgpt_serve.training.errors import TrainingError

SAMPLE_BYTES = 1 << 20
"""What is read at the beginning and at the end of each file; its size and name count too. Whole
files of a terabyte would take longer than the training's start."""


def data_fingerprint(
    *datasets: Dataset | None, subset: str | None = None, images: str | None = None
) -> str:
    """Returns a digest of data sets: of hub ones the name, of local ones names, sizes and samples.

    Args:
        *datasets: What the `data` section names to train on and to evaluate on; None counts too.
        subset: `data.subset`.
        images: A folder of further images, such as `training.prior.images`; one that does not exist
            counts as empty.

    Raises:
        TrainingError: A local one does not exist, or cannot be read.
    """
    digest = hashlib.sha256(repr(subset).encode())
    for at, dataset in enumerate(datasets):
        digest.update(f"data set {at}\n".encode())
        for name in [None] if dataset is None else names_of(dataset):
            if name is None or not is_local(name):
                digest.update(repr(name).encode())
                continue
            for path in local_paths(name, VALIDATION if at else TRAIN):
                _add(digest, path)
    if images is not None:
        digest.update(b"images\n")
        if (folder := expand(images)).is_dir():
            _add(digest, folder)
    return digest.hexdigest()[:32]


def _add(digest: Any, path: Path) -> None:
    """Adds a file, or all files of a folder."""
    for file in Walk(path, Inventory()).files if path.is_dir() else [path]:
        name = file.name if file == path else str(file.relative_to(path))
        digest.update(f"{shown(name)} {file.stat().st_size}\n".encode())
        digest.update(_sample(file))


def _sample(file: Path) -> bytes:
    if not file.is_file():
        raise TrainingError(f"{shown(file)}: is neither a file nor a folder (name one)")
    try:
        with file.open("rb") as stream:
            start = stream.read(SAMPLE_BYTES)
            stream.seek(max(0, file.stat().st_size - SAMPLE_BYTES))
            return start + stream.read(SAMPLE_BYTES)
    except OSError as error:
        reason = error.strerror or str(error)
        message = f"{shown(file)}: cannot be read: {reason} (make it readable)"
        raise TrainingError(message) from error
