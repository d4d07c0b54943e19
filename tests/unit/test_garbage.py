"""How often the garbage collector looks: in blocks within each other, and by time."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from truthgpt_serve import garbage
from truthgpt_serve.garbage import (
    RARE,
    SERVING,
    TimedCollections,
    no_collections,
    rare_collections,
)


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


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> Iterator[TimedCollections]:
    monkeypatch.setattr(garbage, "PERIOD_S", 0.01)
    collections = TimedCollections()
    yield collections
    collections.close()
    gc.unfreeze()


async def test_what_cycles_hold_is_freed_by_time(
    usual: tuple[int, int, int], timed: TimedCollections
) -> None:
    timed.start()
    assert gc.get_threshold() == (SERVING, *usual[1:])
    for _ in range(2):
        node = weakref.ref(Node())
        async with asyncio.timeout(60):
            while node() is not None:
                await asyncio.sleep(0.01)
    timed.close()
    timed.close()
    assert gc.get_threshold() == usual
    node = weakref.ref(Node())
    await asyncio.sleep(0.1)
    assert node() is not None


async def test_it_takes_little_of_the_time(
    usual: tuple[int, int, int], timed: TimedCollections, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    timed.start()
    monkeypatch.setattr(timed, "_wait", waits.append)
    kept = [Node() for _ in range(200_000)]
    async with asyncio.timeout(60):
        while not waits:
            await asyncio.sleep(0.01)
    assert len(kept) == 200_000
    assert waits[0] > 2 * garbage.PERIOD_S


@pytest.mark.parametrize("off", [gc.disable, lambda: gc.set_threshold(0)])
async def test_a_collector_that_is_off_stays_off(
    usual: tuple[int, int, int], timed: TimedCollections, off: Callable[[], None]
) -> None:
    off()
    try:
        timed.start()
        node = weakref.ref(Node())
        await asyncio.sleep(0.1)
        assert node() is not None
    finally:
        gc.enable()
