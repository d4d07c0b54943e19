"""Removes what earlier runs left in their private folder, so that it does not grow for ever."""

from __future__ import annotations

import shutil
from pathlib import Path

from truthgpt_serve.cluster.processes import is_set_anywhere

KEPT_SESSIONS = 3
"""Ray's sessions, with their logs, of the runs before."""
_VARIABLE = "RAY_TMPDIR"


def tidy(private: Path) -> None:
    """Removes temporary files, sockets and old sessions, unless a cluster uses the folder.

    Args:
        private: The private folder of a run's folder.
    """
    if is_set_anywhere(_VARIABLE, str(private)):  # Ray was started by hand, and runs
        return
    sessions = sorted(
        path for path in private.glob("ray/session_*") if path.is_dir() and not path.is_symlink()
    )
    sockets = private.glob("workers-*")  # of fork_client
    for path in [*sessions[:-KEPT_SESSIONS], *private.glob("tmp/*"), *sockets]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
