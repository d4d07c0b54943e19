from __future__ import annotations

import gc
import weakref

import pytest

from truthgpt_serve.server.execution.garbage import ALLOCATIONS, collecting_seldom


class Node:
    """Refers to itself, so that only the collector frees it."""

    def __init__(self) -> None:
        self.itself = self


def test_less_is_collected_inside_and_as_before_afterwards() -> None:
    before = gc.get_threshold()
    with collecting_seldom():
        assert gc.get_threshold() == (ALLOCATIONS, *before[1:])
    assert gc.get_threshold() == before
    with pytest.raises(KeyError), collecting_seldom():
        raise KeyError
    assert gc.get_threshold() == before


def test_what_is_unreferenced_is_freed_inside_too() -> None:
    with collecting_seldom():
        node = weakref.ref(Node())
        kept = [Node() for _ in range(3 * ALLOCATIONS)]
    assert node() is None
    assert len(kept) == 3 * ALLOCATIONS
