"""Reports what a slow check is busy with: users' modules may take minutes to import.

Looks at the frames of the thread that checks, so it sees any import, however it came about.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

MARK = "waiting: "
"""How each line begins."""


@contextmanager
def telling_progress(period_s: float | None, write: Callable[[str], None]) -> Iterator[None]:
    """Writes a line every `period_s` seconds while the body runs in this thread.

    Args:
        period_s: Seconds, or None for silence.
        write: Takes a line.
    """
    if period_s is None:
        yield
        return
    done = threading.Event()
    watched = threading.get_ident()

    def tell() -> None:
        started_s = time.monotonic()
        while not done.wait(period_s):
            frame = sys._current_frames().get(watched)
            write(f"{MARK}{_describe(frame)} ({time.monotonic() - started_s:.0f} s)")

    thread = threading.Thread(target=tell, name="progress of the check", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _describe(frame: FrameType | None) -> str:
    """Returns the file of the innermost module that is being imported, and its line."""
    while frame is not None:
        code = frame.f_code
        if code.co_name == "<module>" and not code.co_filename.startswith("<"):
            if frame.f_globals.get("__name__") == "__main__":
                break
            return f"importing {code.co_filename}, line {frame.f_lineno}"
        frame = frame.f_back
    return "the check is not done yet"
