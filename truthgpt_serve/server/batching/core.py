"""What a batcher does from batch to batch, as steps that any thread or event loop can carry out."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections import deque
from collections.abc import Callable, Generator, Hashable
from functools import partial
from typing import Any

from truthgpt_serve.errors import ServerError
from truthgpt_serve.server.batching.queue import Entry, RequestQueue
from truthgpt_serve.server.batching.statistics import BatchStatistics
from truthgpt_serve.server.batching.wait_policy import BatchWait
from truthgpt_serve.threads import contained

Step = float | list[Any]
"""What comes next: a pause of so many seconds, or a call of the model with these inputs."""
Outcome = tuple[Entry, Any, Exception | None]
"""A request, and its answer or its error."""


class BatchSteps:
    """The way of requests from the queue through the model to their callers.

    Args:
        queue: Where they wait.
        wait: How long to pause before a batch.
        statistics: What is counted here.
        label: `Class.infer_batch`, for messages.
        max_batch_size: Most requests in one call.
        batch_key: Tells which inputs may share a batch; None lets any two.

    Attributes:
        pauses: Whether an arrival must end a pause; true from before it is decided.
    """

    def __init__(
        self,
        queue: RequestQueue,
        wait: BatchWait,
        statistics: BatchStatistics,
        *,
        label: str,
        max_batch_size: int,
        batch_key: Callable[[Any], Hashable] | None,
    ) -> None:
        self.pauses = False
        self._queue = queue
        self._wait = wait
        self._statistics = statistics
        self._label = label
        self._max_batch_size = max_batch_size
        self._batch_key = batch_key

    def run(self) -> Generator[Step, Any, None]:
        """Yields one step after another until nothing waits.

        Send it the outputs of a call, or throw in what the model raised.
        """
        while not self._queue.release_runner():
            self.pauses = True
            # The queue can be empty: its last caller has just left.
            pause_s = self._wait.pause_s(max(1, self._queue.num_waiting), time.monotonic())
            if pause_s > 0:
                yield pause_s
                continue
            self.pauses = False
            self._sort()
            if batch := self._queue.take(self._max_batch_size):
                yield from self._run_batch(batch)

    def _sort(self) -> None:
        """Prepares arrivals: as many as a batch needs, or all where keys must be known."""
        max_entries = None
        if self._batch_key is None:
            max_entries = self._max_batch_size - self._queue.first_line_size()
        failed: list[Outcome] = []
        for entry in self._queue.pop_arrivals(max_entries):
            if not entry.wanted:
                self._queue.finish([entry])
                continue
            try:
                entry.inputs = contained(entry.codec.inputs)
                self._queue.sort(entry, contained(partial(self._key, entry.inputs)))
            except Exception as error:
                failed.append((entry, None, error))
        self._finish(failed)

    def _key(self, inputs: Any) -> Hashable:
        if self._batch_key is None:
            return None
        key = self._batch_key(inputs)
        try:
            hash(key)
        except TypeError as error:
            place = self._label.replace("infer_batch", "batch_key")
            raise ServerError(
                f"{place} returned a {type(key).__name__}, which has no hash; "
                "return a tuple, a string or a number"
            ) from error
        return key

    def _run_batch(self, batch: list[Entry]) -> Generator[Step, Any, None]:
        began_s = time.monotonic()
        self._statistics.count_batch([began_s - entry.since_s for entry in batch])
        groups = deque([batch])
        while groups:
            group = self._wanted(groups.popleft())
            if not group:
                continue
            self._statistics.num_calls += 1
            called_s = time.monotonic()
            try:
                outputs = yield [entry.inputs for entry in group]
                outputs = contained(partial(self._check, outputs, len(group)))
            except Exception as error:
                self._count_failure(len(group), len(batch))
                groups.extendleft(self._split(group, error))
                continue
            outcomes = [_answer(entry, value) for entry, value in zip(group, outputs, strict=True)]
            now_s = time.monotonic()
            waiting = self._queue.num_waiting
            self._wait.called(len(group), now_s - called_s, num_waiting=waiting, now_s=now_s)
            self._finish(outcomes)
        self._statistics.runs.add(time.monotonic() - began_s)

    def _count_failure(self, num_called: int, num_in_batch: int) -> None:
        if num_called > 1:
            self._statistics.num_split_calls += 1
        elif num_in_batch > 1:
            self._statistics.num_isolated += 1

    def _wanted(self, group: list[Entry]) -> list[Entry]:
        wanted: list[Entry] = []
        gone: list[Entry] = []
        for entry in group:
            (wanted if entry.wanted else gone).append(entry)
        if gone:
            self._queue.finish(gone)
        return wanted

    def _split(self, group: list[Entry], error: Exception) -> list[list[Entry]]:
        """Returns what to call again, last part first; a request that was alone gets the error."""
        if len(group) == 1:
            self._finish([(group[0], None, error)])
            return []
        kept: list[Entry] = []
        failed: list[Outcome] = []
        for entry in group:
            try:
                entry.inputs = contained(entry.codec.inputs)  # the call may have changed them
                kept.append(entry)
            except Exception as again:
                failed.append((entry, None, again))
        self._finish(failed)
        middle = len(kept) // 2
        return [part for part in (kept[middle:], kept[:middle]) if part]

    def _check(self, outputs: Any, size: int) -> list[Any]:
        shape = getattr(outputs, "shape", None)
        if inspect.iscoroutine(outputs):
            outputs.close()
        if not isinstance(outputs, list | tuple) and not shape:
            raise ServerError(
                f"{self._label} returned a {type(outputs).__name__}; it returns a list with one "
                "output for each of its inputs"
            )
        if len(outputs) != size:
            raise ServerError(
                f"{self._label} returned {len(outputs)} outputs for {size} inputs; "
                "it returns one for each"
            )
        return list(outputs)

    def _finish(self, outcomes: list[Outcome]) -> None:
        if not outcomes:
            return
        num_failed = sum(error is not None for _, _, error in outcomes)
        self._statistics.num_failed += num_failed
        self._statistics.num_answered += len(outcomes) - num_failed
        self._queue.finish([entry for entry, _, _ in outcomes])
        deliver(outcomes)


def _answer(entry: Entry, output: Any) -> Outcome:
    if isinstance(output, BaseException):
        return entry, None, _settable(output)
    try:
        return entry, contained(partial(entry.codec.encode, output)), None
    except Exception as error:
        return entry, None, error


def _settable(error: BaseException) -> Exception:
    """Returns what may be set on a future and raised on an event loop."""
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    plain = RuntimeError(f"the model returned {type(error).__name__}")
    plain.__cause__ = error
    return plain


def deliver(outcomes: list[Outcome]) -> None:
    """Hands answers and errors to their callers, from any thread, with one wake-up of each loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[Outcome]] = {}
    for outcome in outcomes:
        by_loop.setdefault(outcome[0].future.get_loop(), []).append(outcome)
    for loop, parts in by_loop.items():
        try:
            loop.call_soon_threadsafe(_resolve, parts)
        except RuntimeError:  # the loop is closed, and its callers with it
            continue


def _resolve(outcomes: list[Outcome]) -> None:
    for entry, answer, error in outcomes:
        if entry.future.done():
            continue
        if error is None:
            entry.future.set_result(answer)
        else:
            entry.future.set_exception(_settable(error))
