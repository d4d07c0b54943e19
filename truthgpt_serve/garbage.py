"""Has Python's garbage collector look less often: at what engines load, large bodies, and requests.

The import of vLLM, torch or transformers makes hundreds of thousands of objects that stay. The
collector would look at them again and again, which takes a quarter of the import's time.
"""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

RARE = 50_000
"""New objects between two looks; Python's own value is 700, or 2,000."""

SERVING = 100_000
"""The same while requests are served: those that wait have fewer, and are freed when they end."""
PERIOD_S = 1.0
"""How often the collector looks then."""
SHARE = 0.02
"""How much of the time it may take, with many objects."""

_lock = threading.Lock()
_depth = 0
_usual = gc.get_threshold()


@contextmanager
def no_collections() -> Iterator[None]:
    """Puts collections off while a block makes many objects at once, all of which stay for now."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@contextmanager
def rare_collections() -> Iterator[None]:
    """Makes collections rare in this process until the last of these blocks ends."""
    global _depth, _usual
    with _lock:
        if _depth == 0:
            _usual = gc.get_threshold()
            if 0 < _usual[0] < RARE:  # 0 is never
                gc.set_threshold(RARE, *_usual[1:])
        _depth += 1
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if _depth == 0:
                gc.set_threshold(*_usual)


class TimedCollections:
    """Looks for garbage by time instead of by number while requests are served.

    By number, the collector takes up to a fifth of the time of a replica with short requests, of
    which many wait. What only cycles hold, such as images, is freed within a period, however few
    objects that are; later only where there are so many that a look would take more than its share.

    What there is at the start stays for good, and is not looked at again. A process that has
    switched the collector off keeps it off.
    """

    def __init__(self) -> None:
        self._timer: asyncio.TimerHandle | None = None
        self._before = gc.get_threshold()

    def start(self) -> None:
        """Begins, on the running event loop."""
        gc.collect()
        gc.freeze()
        self._before = gc.get_threshold()
        if 0 < self._before[0] < SERVING:
            gc.set_threshold(SERVING, *self._before[1:])
        self._wait(PERIOD_S)

    def close(self) -> None:
        """Leaves the collector as it was; may be called twice, or without a start."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            gc.set_threshold(*self._before)

    def _wait(self, delay_s: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._look)

    def _look(self) -> None:
        began_s = time.perf_counter()
        if gc.isenabled() and gc.get_threshold()[0]:
            gc.collect()
        self._wait(max(PERIOD_S, (time.perf_counter() - began_s) / SHARE))
