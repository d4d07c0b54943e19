"""Carries the steps of batches out where the class lives: in a thread, or on its event loop."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future
from functools import partial
from typing import Any

from truthgpt_serve.cancellation import Call
from truthgpt_serve.server.batching.core import BatchSteps, Step
from truthgpt_serve.server.execution.workers import Workers
from truthgpt_serve.threads import contained, contained_async


class BatchDriver:
    """Calls the model and waits between batches, as the steps say.

    Args:
        workers: Where `infer_batch` runs.
        infer_batch: The bound method, sync or async: a list of inputs to a list of outputs.
        steps: What comes next.
        label: `Class.infer_batch`, for messages.

    Attributes:
        wake: Ends a pause.
        cancel_call: Cancels the call of the model that runs.
    """

    def __init__(
        self,
        workers: Workers,
        infer_batch: Callable[[list[Any]], Any],
        steps: BatchSteps,
        label: str,
    ) -> None:
        self._workers = workers
        self._infer_batch = infer_batch
        self._steps = steps
        self._label = label
        self.wake: Callable[[], object] = _nothing
        self.cancel_call: Callable[[], object] = _nothing

    def start(self) -> Future[None]:
        """Starts with the first step; the future is done when nothing waits any more.

        Raises:
            RuntimeError: The threads are closed already.
        """
        if inspect.iscoroutinefunction(self._infer_batch):
            return self._workers.loop_thread.submit(self._drive_async())
        return self._workers.submit_batches(self._drive)

    def _drive(self) -> None:
        """Carries the steps out in a thread."""
        arrival = threading.Event()
        self.wake = arrival.set
        steps = self._steps.run()
        step = _next(steps, None, None)
        while step is not None:
            outputs, error = None, None
            if isinstance(step, float):
                arrival.wait(step)
                arrival.clear()
            else:
                call = Call()
                self.cancel_call = call.cancel
                try:
                    outputs = call.run(partial(contained, partial(self._infer_batch, step)))
                except Exception as raised:
                    error = raised
            step = _next(steps, outputs, error)

    async def _drive_async(self) -> None:
        """Carries the steps out on the event loop of an asynchronous class."""
        loop = asyncio.get_running_loop()
        arrival = asyncio.Event()
        self.wake = partial(_call_soon, loop, arrival.set)
        steps = self._steps.run()
        step = _next(steps, None, None)
        while step is not None:
            outputs, error = None, None
            if isinstance(step, float):
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(arrival.wait(), step)
                arrival.clear()
            else:
                try:
                    outputs = await self._call_async(loop, step)
                except Exception as raised:
                    error = raised
            step = _next(steps, outputs, error)

    async def _call_async(self, loop: asyncio.AbstractEventLoop, inputs: list[Any]) -> Any:
        """Calls the model in a task of its own, cancelled once no caller of the batch is left."""
        call = loop.create_task(contained_async(partial(self._infer_batch, inputs)))
        self.cancel_call = partial(_call_soon, loop, call.cancel)
        try:
            await asyncio.wait([call])
        except asyncio.CancelledError:
            call.cancel()
            raise
        finally:
            self.cancel_call = _nothing
        if call.cancelled():
            raise RuntimeError(f"{self._label} was cancelled: all its clients disconnected")
        return call.result()


def _next(steps: Generator[Step, Any, None], outputs: Any, error: Exception | None) -> Step | None:
    try:
        return steps.send(outputs) if error is None else steps.throw(error)
    except StopIteration:
        return None


def _call_soon(loop: asyncio.AbstractEventLoop, function: Callable[[], object]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed: nothing runs there any more
        loop.call_soon_threadsafe(function)


def _nothing() -> None:
    """Stands where nothing is to be woken or cancelled."""
