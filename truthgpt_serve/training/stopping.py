"""Ctrl-C, SIGTERM and SIGHUP while a run goes on: the first saves and stops, the second ends it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from truthgpt_serve.training.run_folder import STOP

EXIT_STOPPED = 130
"""What a shell reports for a program that Ctrl-C ended."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def stopping_by_signal(folder: Path) -> Iterator[None]:
    """Turns the first signal into a request to the loop, and lets the second end the process.

    To be entered in the main thread. What Ray started here ends with this process.
    """
    request = folder / STOP
    request.unlink(missing_ok=True)

    def stop(_number: int, _frame: FrameType | None) -> None:
        if request.exists():
            os.write(sys.stderr.fileno(), b"\nended at once\n")
            os._exit(EXIT_STOPPED)
        request.touch()
        message = b"\nsaving a checkpoint after this step; again to end at once without\n"
        os.write(sys.stderr.fileno(), message)

    before = {
        number: signal.signal(number, stop)
        for number in SIGNALS
        # Under `nohup` a run outlives its terminal.
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        request.unlink(missing_ok=True)
