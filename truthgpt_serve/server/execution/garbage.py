"""Python's cyclic garbage collector while a model loads."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

ALLOCATIONS = 10_000
"""New objects between two collections. Importing an engine makes a million objects that stay: at
Python's own 700 a fifth to a quarter of the time of an import goes into looking through them."""


@contextmanager
def collecting_seldom() -> Iterator[None]:
    """Collects less often inside; for work that makes many objects, nearly all of which stay."""
    before = gc.get_threshold()
    gc.set_threshold(ALLOCATIONS, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
