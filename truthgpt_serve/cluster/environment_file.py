"""Files of environment variables: `configs/ray.env`, and exports for a shell."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path


def read_environment_file(path: Path) -> dict[str, str]:
    """Reads lines of NAME=VALUE; blank lines and comments are left out."""
    values = {}
    for line in path.read_text().splitlines():
        text = line.strip()
        if text and not text.startswith("#"):
            name, _, value = text.partition("=")
            values[name.strip()] = value.strip()
    return values


def write_exports(path: Path, values: Mapping[str, str]) -> None:
    """Writes a file for a shell to read with `.`, so that its commands belong to the cluster."""
    lines = [f"export {name}={shlex.quote(value)}\n" for name, value in sorted(values.items())]
    path.write_text("".join(lines))
