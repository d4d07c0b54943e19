"""Where programs are that some tests need."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path


def find_program(name: str) -> str | None:
    """Returns the path of a program: in the PATH, or beside Python, where `.ci/run` puts some."""
    return shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
