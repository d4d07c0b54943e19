"""Lets no request with many texts keep the tokenizer's threads: they take first what came first."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

from deployments.vllm.sharing.round_robin import RoundRobin, current_request


class TokenizerTurns:
    """The work that waits for threads.

    Args:
        start: Runs a function in one of the threads.
        num_threads: How many there are.
    """

    def __init__(self, start: Callable[[Callable[[], None]], object], num_threads: int) -> None:
        self._start = start
        self._num_threads = num_threads
        self._lock = threading.Lock()
        self._line: RoundRobin[tuple[Future[Any], Callable[[], Any]]] = RoundRobin()
        self._num_running = 0
        self._generation = 0

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Returns what a function of this task's request will return, as `Executor.submit`."""
        future: Future[Any] = Future()
        with self._lock:
            self._line.push(current_request(), (future, partial(function, *args, **kwargs)))
            self._fill()
        return future

    def renew(self) -> None:
        """Starts with new threads: what still runs in the old ones counts no more."""
        with self._lock:
            self._generation += 1
            self._num_running = 0
            self._fill()

    def _fill(self) -> None:
        """Wakes a thread for an item that waits; the lock is held."""
        if self._line and self._num_running < self._num_threads:
            self._start(partial(self._run, self._generation))
            self._num_running += 1

    def _run(self, generation: int) -> None:
        while True:
            with self._lock:
                if generation != self._generation:
                    return
                if not self._line:
                    self._num_running -= 1
                    return
                future, function = self._line.pop()
            _work(future, function)
            del future, function  # a thread that waits keeps no result


def _work(future: Future[Any], function: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = function()
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(result)


def share_tokenizer(executor: Any) -> None:
    """Has the work of an executor taken request by request, in turn.

    Args:
        executor: vLLM's, of its renderer; two of its methods are replaced.
    """
    replace_inner = executor.replace_inner
    turns = TokenizerTurns(executor.submit, executor._max_workers)

    def renewed() -> None:
        replace_inner()
        turns.renew()

    executor.submit, executor.replace_inner = turns.submit, renewed
