"""A loaded model for callers without an event loop, whatever its family's class is."""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
from collections.abc import Awaitable, Callable, Coroutine, Generator
from concurrent.futures import CancelledError
from typing import Any, Self, TypeVar

from truthgpt_serve.config import ModelConfig
from truthgpt_serve.contract import FamilySpec, create_model
from truthgpt_serve.errors import ServerError
from truthgpt_serve.runner import closing
from truthgpt_serve.threads import LoopThread, contained_async

T = TypeVar("T")

CLOSED = "the model is closed"
_END = object()


class LocalModel:
    """A model in this process; `build_model` makes it.

    Methods that are asynchronous in the family's class run on an event loop in a thread of the
    object's own; others run in the caller's thread. Attributes and methods that are not listed
    here are the class's, the asynchronous ones made synchronous.

    Use it in a `with` block, or call `close` at the end. What a program leaves open is closed
    when it is collected or the program ends.

    Attributes:
        instance: The instance of the family's class.
    """

    def __init__(self, driver: Driver) -> None:
        self.instance = driver.instance
        self._driver = driver
        closing.close_with(self, driver)

    @classmethod
    def load(cls, spec: FamilySpec, config: ModelConfig) -> Self:
        """Makes and loads an instance of a family's class."""
        driver = Driver(create_model(spec.load_class(config.task), config.run_name))
        try:
            driver.call(driver.instance.load, config.to_cfg())
        except BaseException:
            driver.end_thread()
            raise
        return cls(driver)

    def infer(self, inputs: Any) -> Any:
        """Answers one request.

        Raises:
            ServerError: The model is closed.
            Exception: Whatever the class raises.
        """
        return self._driver.call(self.instance.infer, inputs)

    def stream(self, inputs: Any) -> Generator[Any, None, None]:
        """Yields the items of the class's `stream`, or else the output of `infer` as the only one.

        Closing the generator, as leaving a `for` loop does, ends the work on the request. Errors
        are those of `infer`.
        """
        if not callable(getattr(self.instance, "stream", None)):
            yield self.infer(inputs)
            return
        yield from self._driver.iterate(self.instance.stream, inputs)

    def close(self) -> None:
        """Ends what runs and frees what the model took; a second call does nothing.

        Raises:
            ServerError: Asynchronous code did not end within 30 s.
            Exception: Whatever the class raises.
        """
        self._driver.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        value = getattr(self.instance, name)
        if inspect.iscoroutinefunction(value):
            return functools.wraps(value)(functools.partial(self._driver.call, value))
        if inspect.isasyncgenfunction(value):
            return functools.wraps(value)(functools.partial(self._driver.iterate, value))
        return value


class Driver:
    """One instance, and the event loop in a thread that its asynchronous methods run on.

    The thread starts when it is first needed.
    """

    def __init__(self, instance: Any) -> None:
        self.instance = instance
        self.label = f"the model of {type(instance).__qualname__}"
        self._thread: LoopThread | None = None
        self._lock = threading.RLock()  # a collection may close a stream inside
        self._closed = False
        self._tasks: set[asyncio.Task[Any]] = set()

    def call(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Calls a method, sync or async, and returns its result."""
        if self._closed:
            raise ServerError(CLOSED)
        if inspect.iscoroutinefunction(method):
            return self._run(lambda: method(*args, **kwargs))
        result = method(*args, **kwargs)
        return self._run(lambda: _await(result)) if inspect.isawaitable(result) else result

    def iterate(
        self, method: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Generator[Any, None, None]:
        """Calls a method that gives an iterable, sync or async, and yields its items."""
        source = self.call(method, *args, **kwargs)
        if not hasattr(source, "__aiter__"):
            yield from source
            return
        items = _Items(source)
        self._run(lambda: items.start(self._tasks))
        try:
            while (item := self._run(items.next)) is not _END:
                yield item
        finally:
            self._finish(items)

    def _finish(self, items: _Items) -> None:
        """Closes the source; that of a closed model is closed already."""
        if self._thread is not None and self._thread.is_current:  # collected there: cannot wait
            items.cancel()
            return
        try:
            self._run(items.close)
        except ServerError:
            if not self._closed:
                raise

    def _run(self, function: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Runs a coroutine on the loop; stops it when the caller is interrupted."""
        with self._lock:
            thread = self._thread
            if self._closed:
                raise ServerError(CLOSED)
            if thread is not None and thread.is_current:
                raise ServerError("called on the model's own event loop: await the class's method")
            future = self._started().submit(self._tracked(function))
        try:
            return future.result()
        except CancelledError:
            raise ServerError("the model was closed before it answered") from None
        except BaseException:
            future.cancel()
            raise

    def _started(self) -> LoopThread:
        if self._thread is None:
            self._thread = LoopThread("truthgpt-model")
        return self._thread

    async def _tracked(self, function: Callable[[], Coroutine[Any, Any, T]]) -> T:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            return await contained_async(function)
        finally:
            self._tasks.discard(task)

    def close(self) -> None:
        """Ends the calls that run, closes the instance and ends the thread."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        closing.forget(self)
        try:
            if self._thread is not None:
                self._wait(self._end_calls)
            close = getattr(self.instance, "close", None)
            result = close() if callable(close) else None
            if inspect.isawaitable(result):
                self._wait(lambda: _await(result))
        finally:
            self.end_thread()

    def close_unused(self) -> None:
        """Closes as `close` does; in a thread beside when called on the model's own loop."""
        if self._thread is not None and self._thread.is_current:
            threading.Thread(target=self.close, name="truthgpt-close").start()
        else:
            self.close()

    def end_thread(self) -> None:
        """Ends the thread, if there is one."""
        with self._lock:
            self._closed = True
            thread, self._thread = self._thread, None
        if thread is not None:
            thread.close(closing.CLOSE_TIMEOUT_S)

    def _wait(self, function: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        future = self._started().submit(contained_async(function))
        try:
            future.result(closing.CLOSE_TIMEOUT_S)
        except TimeoutError:
            if future.done():
                raise
            message = f"{self.label} did not close within {closing.CLOSE_TIMEOUT_S:g} s"
            raise ServerError(message) from None

    async def _end_calls(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Items:
    """Takes the items of an asynchronous iterator one by one, all in the same task.

    Code such as `asyncio.timeout` around a `yield` needs that.
    """

    def __init__(self, source: Any) -> None:
        self._source = source
        self._task: asyncio.Task[None] | None = None
        self._wanted = asyncio.Semaphore(0)
        self._ready: asyncio.Queue[Any] = asyncio.Queue()
        self._error: Exception | None = None

    async def start(self, tasks: set[asyncio.Task[Any]]) -> None:
        """Starts the task, which is in `tasks` while it runs."""
        self._task = asyncio.create_task(self._drive())
        tasks.add(self._task)
        self._task.add_done_callback(tasks.discard)

    async def next(self) -> Any:
        """Returns the next item, or `_END`; raises what the iterator raises."""
        self._wanted.release()
        item = await self._ready.get()
        if item is _END:
            self._raise_error()
        return item

    async def close(self) -> None:
        """Closes the iterator; raises what that raises."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._raise_error()

    def cancel(self) -> None:
        """Closes the iterator without waiting for it; called on the loop."""
        if self._task is not None:
            self._task.cancel()

    def _raise_error(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    async def _drive(self) -> None:
        try:
            await contained_async(self._take_all)
        except Exception as error:
            self._error = error
        finally:
            self._ready.put_nowait(_END)

    async def _take_all(self) -> None:
        try:
            await self._wanted.acquire()
            async for item in self._source:
                self._ready.put_nowait(item)
                await self._wanted.acquire()
        finally:
            if callable(close := getattr(self._source, "aclose", None)):
                await close()


async def _await(awaitable: Awaitable[T]) -> T:
    return await awaitable
