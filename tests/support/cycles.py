"""Looks for what only Python's garbage collector frees."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from truthgpt_serve.garbage import no_collections


@contextmanager
def without_cycles(most: int, kind: str = "") -> Iterator[None]:
    """Checks that a block leaves fewer objects than `most`, or of this class, to the collector."""
    gc.collect()
    with no_collections():
        yield
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            number = gc.collect()
            kinds = Counter(type(each).__qualname__ for each in gc.garbage)
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
    assert (kinds[kind] if kind else number) < most, kinds.most_common(20)
