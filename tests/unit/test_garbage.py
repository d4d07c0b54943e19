"""How often the garbage collector looks, in blocks within and beside each other."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from truthgpt_serve.garbage import RARE, no_collections, rare_collections


class Node:
    """Refers to itself, so that only the collector frees it."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture
def usual() -> Iterator[tuple[int, int, int]]:
    before = gc.get_threshold()
    gc.set_threshold(700, 11, 12)
    yield gc.get_threshold()
    gc.set_threshold(*before)


def test_collections_are_rare_until_the_last_block_ends(usual: tuple[int, int, int]) -> None:
    first, second = ExitStack(), ExitStack()
    first.enter_context(rare_collections())
    second.enter_context(rare_collections())
    first.close()
    assert gc.get_threshold() == (RARE, 11, 12)
    second.close()
    assert gc.get_threshold() == usual


def test_an_error_ends_a_block_too(usual: tuple[int, int, int]) -> None:
    with pytest.raises(ZeroDivisionError), rare_collections():
        1 / 0  # noqa: B018
    assert gc.get_threshold() == usual


@pytest.mark.parametrize("given", [0, RARE + 1])
def test_a_collector_that_looks_less_often_or_never_stays_so(
    usual: tuple[int, int, int], given: int
) -> None:
    gc.set_threshold(given, *usual[1:])
    with rare_collections():
        assert gc.get_threshold() == (given, *usual[1:])
    assert gc.get_threshold() == (given, *usual[1:])


def test_what_is_unreferenced_is_freed_inside_a_block_too(usual: tuple[int, int, int]) -> None:
    with rare_collections():
        node = weakref.ref(Node())
        kept = [Node() for _ in range(3 * RARE)]
    assert node() is None
    assert len(kept) == 3 * RARE


def test_collections_are_put_off_and_come_again() -> None:
    for _ in range(2):
        with ExitStack() as blocks:
            blocks.enter_context(no_collections())
            blocks.enter_context(no_collections())
            assert not gc.isenabled()
        assert gc.isenabled()
    with pytest.raises(ValueError, match="x"), no_collections():
        raise ValueError("x")
    assert gc.isenabled()
    gc.disable()
    try:
        with no_collections():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
