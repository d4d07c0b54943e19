"""Keeps a cluster's files, and the token that its ports ask for, to the user who starts it.

Ray and HAProxy otherwise write where every user of the machine may: below `/tmp/ray`, whose sockets
take tasks from whoever opens them, and `/tmp/haproxy-serve`.
"""

from __future__ import annotations

import os
import secrets
import stat
import tempfile
from pathlib import Path

TOKEN_FILE = "token"
LINK = "private"
"""Name of the link in a run's folder that leads to its private one."""
RAY_FOLDER_VARIABLE = "RAY_TMPDIR"
TOKEN_PATH_VARIABLE = "RAY_AUTH_TOKEN_PATH"
LOOPBACK_ONLY = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Ray's own way to say that a cluster is one node, at the loopback address.

As a node's address it takes 127.0.0.1 for the machine's, and then its ports are on every address.
"""
LONGEST_PARENT = len("/var/tmp")
"""Ray's UNIX sockets lie some 90 characters below, and their paths are limited to 107."""


def make_private_folder() -> Path:
    """Makes a folder with a short path that only this user can enter."""
    parent = tempfile.gettempdir()
    return Path(tempfile.mkdtemp("", "tg", parent if len(parent) <= LONGEST_PARENT else "/tmp"))


def find_private_folder(run_folder: Path) -> Path:
    """Returns the private folder of a run's folder, where the runs before have theirs too.

    A link leads to it, because paths of sockets must be short. A link to what is not this user's
    alone is not followed: a folder below `/tmp` whose name is known can be another user's.
    """
    run_folder.mkdir(0o755, parents=True, exist_ok=True)
    link = run_folder / LINK
    if link.is_symlink():
        folder = link.readlink()
        if is_private(folder):
            return folder
        link.unlink()
    folder = make_private_folder()
    link.symlink_to(folder)
    return folder


def is_private(folder: Path) -> bool:
    """Returns whether a folder is there, and this user's alone."""
    try:
        found = folder.lstat()
    except OSError:
        return False
    others = stat.S_IMODE(found.st_mode) & 0o077
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not others


def write_token(folder: Path, token: str = "") -> Path:
    """Writes the token that Ray's ports ask for, by default a new one; returns its file.

    Give a folder that is not cleaned up: each of Ray's processes reads the file when it starts.
    """
    path = folder / TOKEN_FILE
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
        file.write(token or secrets.token_hex(32))
    return path


def private_environment(folder: Path, token_file: Path) -> dict[str, str]:
    """Returns the variables that keep Ray, HAProxy and the engines to a private folder."""
    haproxy, temporary = folder / "haproxy", folder / "tmp"
    temporary.mkdir(mode=0o700, exist_ok=True)
    return {
        RAY_FOLDER_VARIABLE: str(folder),
        # Compiled kernels and sockets of engines: by default under names that others can foresee.
        "TMPDIR": str(temporary),
        TOKEN_PATH_VARIABLE: str(token_file.absolute()),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(haproxy / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(haproxy / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(haproxy),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(haproxy / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(haproxy / "metrics.sock"),
    }
