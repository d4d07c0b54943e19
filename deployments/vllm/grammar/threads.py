"""The engine's threads for grammars."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

NICENESS = 5
"""The engine's next step goes before a grammar."""


class GrammarThreads(ThreadPoolExecutor):
    """Threads of which one at most works on each grammar.

    The compiler blocks whoever asks for a grammar that it is compiling already, so requests for the
    same one would fill all threads.

    Args:
        count: The number of threads.
        key_of: Returns the grammar of a request.
    """

    def __init__(self, count: int, key_of: Callable[[Any], Any]) -> None:
        super().__init__(count, "grammar", _make_way)
        self._key_of = key_of
        self._lock = threading.Lock()
        self._compiling: dict[Any, Future[Any]] = {}

    def submit(self, function: Callable[..., Any], /, *args: Any, **kw: Any) -> Future[Any]:
        """Runs `function(request)`; after the one that runs for the same grammar, if there is."""
        key = self._key_of(*args)
        with self._lock:
            first = self._compiling.get(key)
            if first is None:
                future = super().submit(function, *args, **kw)
                self._compiling[key] = future
        if first is None:
            future.add_done_callback(lambda _: self._forget(key))
            return future
        later: Future[Any] = Future()
        first.add_done_callback(lambda _: self._follow(later, function, args, kw))
        return later

    def _forget(self, key: Any) -> None:
        with self._lock:
            self._compiling.pop(key, None)

    def _follow(self, later: Future[Any], function: Callable[..., Any], args: Any, kw: Any) -> None:
        try:
            super().submit(function, *args, **kw).add_done_callback(lambda done: _copy(done, later))
        except RuntimeError as error:  # the threads have ended
            later.set_exception(error)


def _copy(done: Future[Any], later: Future[Any]) -> None:
    if done.cancelled():
        later.cancel()
    elif (error := done.exception()) is not None:
        later.set_exception(error)
    else:
        later.set_result(done.result())


def _make_way() -> None:
    if sys.platform == "linux":  # elsewhere a thread has no priority of its own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
