"""An event loop in a thread, and what keeps a model's own exceptions from ending one."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")

logger = logging.getLogger(__name__)


class LoopThread:
    """An event loop in a thread of its own: blocking code in an `async def` blocks only it.

    It runs until it is closed here: what a task or a callback of a model does to it, such as
    `sys.exit()` or `loop.stop()`, must not end it for all requests after it.
    """

    def __init__(self, name: str) -> None:
        self._is_closing = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            while not self._is_closing:
                self._run_once()
        finally:
            self._loop.close()

    def _run_once(self) -> None:
        try:
            self._loop.run_forever()
        except (SystemExit, KeyboardInterrupt) as error:  # asyncio lets no others through
            logger.error(
                "a task or callback of the model raised %s; its event loop goes on",
                type(error).__name__,
                exc_info=error,
            )

    @property
    def is_current(self) -> bool:
        """Whether the calling code runs in this thread."""
        return threading.current_thread() is self._thread

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Starts the coroutine; cancelling the future cancels it."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def close(self, timeout_s: float) -> None:
        """Cancels what runs and ends the thread, waiting at most `timeout_s` for each."""
        done = self.submit(_cancel_all())
        try:
            done.result(timeout_s)
        except TimeoutError:
            done.cancel()
        self._is_closing = True
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout_s)


async def _cancel_all() -> None:
    own = asyncio.current_task()
    tasks = [task for task in asyncio.all_tasks() if task is not own]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_asyncgens()


def contained(function: Callable[[], T]) -> T:
    """Makes plain errors of what must not reach an event loop, such as `SystemExit`."""
    try:
        return function()
    except StopIteration as error:
        raise RuntimeError("the model raised StopIteration") from error
    except Exception:
        raise
    except BaseException as error:
        raise RuntimeError(f"the model raised {type(error).__name__}") from error


async def contained_async(function: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Does the same for asynchronous code; a cancellation from outside passes."""
    try:
        return await function()
    except Exception:
        raise
    except BaseException as error:
        task = asyncio.current_task()
        if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
            raise
        raise RuntimeError(f"the model raised {type(error).__name__}") from error
