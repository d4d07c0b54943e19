"""Reads what a running HAProxy knows, for the one that takes its place."""

from __future__ import annotations

import re
import socket
from collections.abc import Sequence
from pathlib import Path

TIMEOUT_S = 2
"""For one reading or writing at the socket of a process that may hang."""
MAX_AT_ONCE = 128
"""Variables of one command, which has to fit into HAProxy's buffer."""
MAX_BYTES = 1 << 20

_VARIABLE = re.compile(r"^(proc\.\w+): type=\S+ value=<(.*)>$", re.MULTILINE)

_ENTRY = re.compile(r"^0x[0-9a-f]+ (\S+) (.*)$", re.MULTILINE)


def read_variables(path: Path, names: Sequence[str]) -> dict[str, str]:
    """Returns the values of variables by name; those that are not set are left out.

    Args:
        path: The admin socket.
        names: Of variables of the process, `proc.` included.

    Raises:
        OSError: There is no such process, or it does not answer.
    """
    found: dict[str, str] = {}
    for start in range(0, len(names), MAX_AT_ONCE):
        command = "; ".join(f"get var {name}" for name in names[start : start + MAX_AT_ONCE])
        found.update(_VARIABLE.findall(_ask(path, command)))
    return found


def read_map(path: Path, file: Path) -> dict[str, str]:
    """Returns what is in a map now.

    Args:
        path: The admin socket.
        file: What the map was read from.

    Raises:
        OSError: There is no such process, or it does not answer.
    """
    return dict(_ENTRY.findall(_ask(path, f"show map {file}")))


def _ask(path: Path, command: str) -> str:
    said = bytearray()
    with socket.socket(socket.AF_UNIX) as admin:
        admin.settimeout(TIMEOUT_S)
        admin.connect(str(path))
        admin.sendall(command.encode() + b"\n")
        while (piece := admin.recv(65536)) and len(said) < MAX_BYTES:
            said += piece
    return said.decode(errors="replace")
