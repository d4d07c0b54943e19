"""Tells whether data is still what a run began with.

Knows no format: it looks at bytes and names.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

SAMPLE_BYTES = 1 << 20
"""What is read at the beginning and at the end of each file; its size and name count too. Whole
files of a terabyte would take longer than the training's start."""


def data_fingerprint(*datasets: str | None, subset: str | None = None) -> str:
    """Returns a digest of data sets: of hub ones the name, of local ones names, sizes and samples.

    Args:
        *datasets: What the `data` section names; None counts too.
        subset: `data.subset`.
    """
    digest = hashlib.sha256(repr(subset).encode())
    for dataset in datasets:
        path = Path(dataset).expanduser() if dataset else None
        if path is None or not path.exists():
            digest.update(repr(dataset).encode())
            continue
        files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
        for file in files:
            name = file.name if path.is_file() else str(file.relative_to(path))
            digest.update(f"{name} {file.stat().st_size}\n".encode())
            digest.update(_sample(file))
    return digest.hexdigest()[:32]


def _sample(file: Path) -> bytes:
    with file.open("rb") as stream:
        start = stream.read(SAMPLE_BYTES)
        stream.seek(max(0, file.stat().st_size - SAMPLE_BYTES))
        return start + stream.read(SAMPLE_BYTES)
