"""Where the file with the usage lies."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

STATE_VARIABLE = "XDG_STATE_HOME"
SUFFIX = ".usage.sqlite"


def find_file(keys_file: str, file: str | None, environ: Mapping[str, str] = os.environ) -> Path:
    """Returns the file for the usage of a file's keys.

    Args:
        keys_file: The file with the keys, absolute.
        file: What the configuration names, or None: then it is the one beside the keys that has
            their name, where that folder can be written, else one in this user's state folder.
        environ: The environment.
    """
    if file is not None:
        return Path(file)
    keys = Path(keys_file)
    beside = keys.with_name(f"{keys.stem}{SUFFIX}")
    # SQLite makes files beside it: the folder counts where the file is there already too.
    if os.access(beside.parent, os.W_OK) and (not beside.exists() or os.access(beside, os.W_OK)):
        return beside
    return _state_folder(environ) / f"{keys.stem}-{_digest(keys_file)}{SUFFIX}"


def _state_folder(environ: Mapping[str, str]) -> Path:
    given = Path(environ.get(STATE_VARIABLE, ""))
    if given.is_absolute():
        return given / "truthgpt"
    return Path(environ.get("HOME") or "/var/tmp", ".local", "state", "truthgpt")


def _digest(text: str) -> str:
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:12]
