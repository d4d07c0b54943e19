"""A loaded model for callers with an event loop, whatever its family's class is."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from functools import partial
from typing import Any, Self, TypeVar

from truthgpt_serve.cancellation import Call
from truthgpt_serve.config import ModelConfig
from truthgpt_serve.contract import FamilySpec, create_model
from truthgpt_serve.errors import ServerError
from truthgpt_serve.runner import closing
from truthgpt_serve.threads import contained

T = TypeVar("T")

CLOSED = "the model is closed"
_END = object()


class AsyncLocalModel:
    """A model in this process, on the event loop that built it; `build_async_model` makes it.

    Asynchronous methods of the family's class run on that loop, blocking ones in a thread, one at
    a time. Attributes and methods that are not listed here are the class's own.

    Use it in an `async with` block, or await `close` at the end.

    Attributes:
        instance: The instance of the family's class.
    """

    def __init__(self, driver: AsyncDriver) -> None:
        self.instance = driver.instance
        self._driver = driver
        closing.close_with(self, driver)

    @classmethod
    async def load(cls, spec: FamilySpec, config: ModelConfig) -> Self:
        """Makes and loads an instance of a family's class."""
        driver = AsyncDriver()
        try:
            await driver.load(spec, config)
        except BaseException:
            driver.end_thread()
            raise
        return cls(driver)

    async def infer(self, inputs: Any) -> Any:
        """Answers one request; cancel it to end the work on it.

        Raises:
            ServerError: The model is closed.
            Exception: Whatever the class raises.
        """
        return await self._driver.call(self.instance.infer, inputs)

    async def stream(self, inputs: Any) -> AsyncGenerator[Any, None]:
        """Yields the items of the class's `stream`, or else the output of `infer` as the only one.

        Closing the generator ends the work on the request: use `contextlib.aclosing` where the
        loop may be left early. Errors are those of `infer`.
        """
        if not callable(getattr(self.instance, "stream", None)):
            yield await self.infer(inputs)
            return
        async with aclosing(self._driver.iterate(self.instance.stream, inputs)) as items:
            async for item in items:
                yield item

    async def close(self) -> None:
        """Frees what the model took; a second call does nothing.

        Raises:
            Exception: Whatever the class raises.
        """
        await self._driver.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.instance, name)


class AsyncDriver:
    """One instance, and the thread that its blocking methods run in."""

    def __init__(self) -> None:
        self.instance: Any = None
        self.label = "the model"
        self._loop = asyncio.get_running_loop()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="truthgpt-model")
        self._closed = False

    async def load(self, spec: FamilySpec, config: ModelConfig) -> None:
        """Makes and loads the instance."""

        def create() -> Any:
            return create_model(spec.load_class(config.task), config.run_name)

        self.instance = await self._in_thread(create, Call())
        self.label = f"the model of {type(self.instance).__qualname__}"
        await self.call(self.instance.load, config.to_cfg())

    async def call(self, method: Callable[..., Any], *args: Any) -> Any:
        """Calls a method, sync or async, and returns its result."""
        if self._closed:
            raise ServerError(CLOSED)
        if inspect.iscoroutinefunction(method):
            return await method(*args)
        result = await self._in_thread(partial(method, *args), Call())
        return await result if inspect.isawaitable(result) else result

    async def iterate(self, method: Callable[..., Any], *args: Any) -> AsyncGenerator[Any, None]:
        """Calls a method that gives an iterable, sync or async, and yields its items."""
        if inspect.isasyncgenfunction(method) and not self._closed:
            source = method(*args)
        else:
            source = await self.call(method, *args)
        if not hasattr(source, "__aiter__"):
            source = self._in_steps(iter(source))
        try:
            async for item in source:
                yield item
        finally:
            if callable(close := getattr(source, "aclose", None)):
                await close()

    async def _in_steps(self, source: Any) -> AsyncGenerator[Any, None]:
        call = Call()
        try:
            while (item := await self._in_thread(lambda: next(source, _END), call)) is not _END:
                yield item
        finally:
            if callable(close := getattr(source, "close", None)):
                await self._in_thread(close, call)

    async def _in_thread(self, function: Callable[[], T], call: Call) -> T:
        work = self._pool.submit(contained, partial(call.run, function))
        try:
            return await asyncio.wrap_future(work)
        except asyncio.CancelledError:
            call.cancel()
            raise

    async def close(self) -> None:
        """Closes the instance and ends the thread."""
        if self._closed:
            return
        self._closed = True
        closing.forget(self)
        try:
            close = getattr(self.instance, "close", None)
            if inspect.iscoroutinefunction(close):
                await close()
            elif callable(close):
                result = await self._in_thread(close, Call())
                if inspect.isawaitable(result):
                    await result
        finally:
            self.end_thread()

    def close_unused(self) -> None:
        """Closes on the model's loop while that runs, else on another one."""
        if self._loop.is_running():
            asyncio.run_coroutine_threadsafe(self.close(), self._loop)
            return
        thread = threading.Thread(target=lambda: asyncio.run(self.close()), daemon=True)
        thread.start()
        thread.join(closing.CLOSE_TIMEOUT_S)

    def end_thread(self) -> None:
        """Has the thread end after what it does now."""
        self._closed = True
        self._pool.shutdown(wait=False)
