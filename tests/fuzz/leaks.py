"""Finds secrets in files and texts, whole or as the hash that stands in the file of keys."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

BLOCK_BYTES = 1 << 22


def traces_of(secrets: Mapping[str, str]) -> dict[str, bytes]:
    """Returns what must not be found of these secrets, each with what it is."""
    found = {}
    for name, secret in secrets.items():
        hashed = hashlib.sha256(secret.encode())
        found[f"key {name}"] = secret.encode()
        found[f"SHA-256 of key {name}"] = hashed.hexdigest().encode()
        found[f"SHA-256 of key {name} in base64"] = base64.b64encode(hashed.digest())
    return found


def find_in_files(files: Iterable[Path], secrets: Mapping[str, str]) -> list[str]:
    """Returns which secrets stand in which files, a line each."""
    traces = traces_of(secrets)
    overlap = max(map(len, traces.values()))
    found = []
    for path in files:
        if path.parent.name.startswith("truthgpt-quota-"):  # has a copy of the file of keys
            continue
        seen: set[str] = set()
        try:
            with path.open("rb") as file:
                tail = b""
                while block := file.read(BLOCK_BYTES):
                    text = tail + block
                    seen |= {name for name, trace in traces.items() if trace in text}
                    tail = text[-overlap:]
        except OSError:
            continue
        found += [f"{name} stands in {path}" for name in sorted(seen)]
    return found
