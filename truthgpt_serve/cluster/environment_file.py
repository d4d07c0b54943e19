"""Files of environment variables: `configs/ray.env`, and exports for a shell."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

ENVIRONMENT_FILE = "environment"
"""Name of the exports in a run's folder."""


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


def read_exports(path: Path) -> dict[str, str]:
    """Reads what `write_exports` wrote; nothing where there is no such file."""
    try:
        words = shlex.split(path.read_text())
    except (OSError, ValueError):
        return {}
    pairs = (word.partition("=") for word in words if "=" in word)
    return {name: value for name, _, value in pairs}
