"""Has Python's garbage collector look less often while engines are loaded or large bodies read.

The import of vLLM, torch or transformers makes hundreds of thousands of objects that stay. The
collector would look at them again and again, which takes a quarter of the import's time.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

RARE = 50_000
"""New objects between two looks; Python's own value is 700, or 2,000."""

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
