"""Work of several requests takes turns in the tokenizer's threads."""

from __future__ import annotations

import threading
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any

import pytest

from deployments.vllm.sharing.round_robin import one_request
from deployments.vllm.sharing.tokenizer_turns import share_tokenizer


class Pool(Executor):
    """Like vLLM's: one object, whose threads are replaced when one of them is stuck."""

    def __init__(self, max_workers: int = 1) -> None:
        self._max_workers = max_workers
        self._inner = ThreadPoolExecutor(max_workers)

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        return self._inner.submit(function, *args, **kwargs)

    def replace_inner(self) -> None:
        self._inner.shutdown(wait=False)
        self._inner = ThreadPoolExecutor(self._max_workers)


@pytest.fixture
def pool() -> Pool:
    pool = Pool()
    share_tokenizer(pool)
    return pool


def test_one_text_does_not_wait_for_another_request_of_many(pool: Pool) -> None:
    began = threading.Event()
    done: list[str] = []
    held = pool.submit(began.wait, 10)
    with one_request():
        many = [pool.submit(done.append, "many") for _ in range(20)]
    with one_request():
        one = pool.submit(done.append, "one")
    began.set()
    for work in (held, *many, one):
        work.result(10)
    assert done.index("one") == 1


def test_what_is_raised_and_what_is_canceled(pool: Pool) -> None:
    began = threading.Event()
    done: list[str] = []
    held = pool.submit(began.wait, 10)
    canceled = pool.submit(done.append, "canceled")
    wrong = pool.submit(int, "x")
    assert canceled.cancel()
    began.set()
    with pytest.raises(ValueError, match="invalid literal"):
        wrong.result(10)
    assert held.result(10)
    assert pool.submit(len, "abc").result(10) == 3
    assert not done


def test_a_stuck_thread_holds_up_nothing_once_it_is_replaced(pool: Pool) -> None:
    began, stuck = threading.Event(), threading.Event()

    def hang() -> bool:
        began.set()
        return stuck.wait(10)

    held = pool.submit(hang)
    waiting = pool.submit(len, "abc")
    assert began.wait(10)
    pool.replace_inner()
    assert waiting.result(10) == 3
    stuck.set()
    assert held.result(10)
    assert pool.submit(len, "ab").result(10) == 2


def test_vllm_still_has_what_this_replaces() -> None:
    base = pytest.importorskip("vllm.renderers.base")
    pool = base._SwappableExecutor(max_workers=2)
    share_tokenizer(pool)
    assert pool.submit(len, "abc").result(10) == 3
    pool.replace_inner()
    assert pool.submit(len, "abc").result(10) == 3
    pool.shutdown()
