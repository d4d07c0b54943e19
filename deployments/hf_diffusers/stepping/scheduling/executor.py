"""Runs the chosen calls as one forward, and finds a way when that fails; does not choose them."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from deployments.hf_diffusers.stepping.calls.call import structure
from deployments.hf_diffusers.stepping.calls.self_check import is_telling, largest_difference
from deployments.hf_diffusers.stepping.errors import (
    DoesNotFitError,
    EngineFailedError,
    JobCancelled,
)
from deployments.hf_diffusers.stepping.options import EngineOptions
from deployments.hf_diffusers.stepping.pipelines.adapters import MixedRowsError, Rows
from deployments.hf_diffusers.stepping.pipelines.added import ModuleEntry
from deployments.hf_diffusers.stepping.pipelines.nan_check import not_finite
from deployments.hf_diffusers.stepping.scheduling.forward_timer import ForwardClock
from deployments.hf_diffusers.stepping.scheduling.row_caps import RowCapTable, measure_row_cap
from deployments.hf_diffusers.stepping.scheduling.scheduled_job import ModuleCall, Outcome
from deployments.hf_diffusers.stepping.statistics import Counters

logger = logging.getLogger(__name__)

MAX_FALSE_ALARMS = 3
"""Batches of one module that may fail although each of their calls succeeds alone, before its calls
run alone for ever: its schema is wrong then, and trying costs a forward each time."""


class Executor:
    """Runs groups of calls of equal keys. For one thread."""

    def __init__(self, options: EngineOptions, caps: RowCapTable, counters: Counters) -> None:
        self._options = options
        self._caps = caps
        self._counters = counters
        self._clock = ForwardClock(options.max_run_ahead)
        self._false_alarms: dict[int, int] = {}

    def run(self, calls: Sequence[ModuleCall]) -> list[Outcome]:
        """Returns what each call came to.

        Raises:
            EngineFailedError: The device is lost; nothing can run on it any more.
        """
        first = calls[0]
        if first.scheduled.probe is not None and first.module.is_denoiser:
            self._measure(first)
            return [Outcome(error=JobCancelled())]
        if len(calls) == 1:
            return [self._run_one(first)]
        if self._needs_check(first):
            return self._check(calls)
        outcomes = self._try(lambda: self._forward(calls))
        if isinstance(outcomes, torch.OutOfMemoryError):
            return self._split(calls)
        if isinstance(outcomes, MixedRowsError):
            return self._unmix(calls, outcomes)
        if isinstance(outcomes, Exception):
            return self._run_each(calls, outcomes)
        return outcomes

    def close(self) -> None:
        """Waits for what the device still does."""
        self._clock.drain()

    def _try(self, function: Callable[[], list[Outcome]]) -> list[Outcome] | Exception:
        """Returns what the function returns or raises."""
        try:
            return function()
        except torch.AcceleratorError as error:
            raise EngineFailedError(f"the device is lost: {error}") from error
        except Exception as error:
            if isinstance(error, torch.OutOfMemoryError):
                # Its frames hold the merged tensors, which must go before another try.
                error.__traceback__ = None
            return error

    def _run_one(self, call: ModuleCall) -> Outcome:
        outcomes = self._try(lambda: self._forward([call]))
        if isinstance(outcomes, torch.OutOfMemoryError):
            # What other requests' batches left in the allocator's cache may be what is missing.
            _free_cache(call)
            outcomes = self._try(lambda: self._forward([call]))
        if isinstance(outcomes, torch.OutOfMemoryError):
            _free_cache(call)
            return Outcome(error=_does_not_fit(call))
        if isinstance(outcomes, Exception):
            return Outcome(error=outcomes)
        return outcomes[0]

    def _split(self, calls: Sequence[ModuleCall]) -> list[Outcome]:
        first = calls[0]
        total = sum(call.num_rows for call in calls)
        self._counters.count("out_of_memory_splits")
        self._caps.shrink(self._caps.key(first.module, first.shape), total)
        logger.warning(
            "%s: %d rows of shape %s do not fit into memory; tried again in halves",
            *(first.module.name, total, first.shape),
        )
        _free_cache(first)
        middle = len(calls) // 2
        return self.run(calls[:middle]) + self.run(calls[middle:])

    def _unmix(self, calls: Sequence[ModuleCall], error: MixedRowsError) -> list[Outcome]:
        bank = calls[0].module.adapters
        if bank is not None:
            bank.mixable = False
        logger.info("adapters run one after the other: %s", error)
        outcomes: dict[int, Outcome] = {}
        for adapters in dict.fromkeys(call.adapters for call in calls):
            group = [call for call in calls if call.adapters == adapters]
            outcomes.update(zip(map(id, group), self.run(group), strict=True))
        return [outcomes[id(call)] for call in calls]

    def _run_each(self, calls: Sequence[ModuleCall], error: Exception) -> list[Outcome]:
        entry = calls[0].module
        self._counters.count("solo_fallbacks")
        logger.warning("%s: a batch of %d failed", entry.name, len(calls), exc_info=error)
        error.__traceback__ = None
        outcomes = [self._run_one(call) for call in calls]
        if all(outcome.error is None for outcome in outcomes):
            alarms = self._false_alarms[id(entry)] = self._false_alarms.get(id(entry), 0) + 1
            if alarms >= MAX_FALSE_ALARMS:
                entry.is_solo = True
                logger.error("%s: its calls run alone from now on: %r", entry.name, error)
        return outcomes

    def _needs_check(self, call: ModuleCall) -> bool:
        entry = call.module
        return bool(entry.guesses) and structure(call.bound) not in entry.checked

    def _check(self, calls: Sequence[ModuleCall]) -> list[Outcome]:
        """Runs each call alone, hands that back, and compares with the batch of them."""
        entry = calls[0].module
        outcomes = [self._run_one(call) for call in calls]
        failed = any(outcome.error is not None for outcome in outcomes)
        if failed or not is_telling([call.bound for call in calls]):
            for _ in calls:
                self._counters.count("unbatchable_calls")
            return outcomes
        batched = self._try(lambda: self._forward(calls))
        if isinstance(batched, torch.OutOfMemoryError):
            return outcomes
        tolerance = self._options.self_check_tolerance
        if entry.dtype.itemsize < 4:
            tolerance *= 300
        if isinstance(batched, Exception):
            reason = repr(batched)
        else:
            pairs = zip(batched, outcomes, strict=True)
            worst = max(largest_difference(one.value, other.value) for one, other in pairs)
            # Not `worst > tolerance`: NaN must fail.
            reason = "" if worst <= tolerance else f"results differ by {worst:.2g}"
        if reason:
            entry.is_solo = True
            self._counters.count("self_checks_failed")
            logger.warning("%s: calls run alone, the self-check failed: %s", entry.name, reason)
        else:
            entry.checked.add(structure(calls[0].bound))
            logger.info("%s: calls may be batched, the self-check passed", entry.name)
        return outcomes

    def _measure(self, call: ModuleCall) -> None:
        probe, schema = call.scheduled.probe, call.schema
        if probe is None or schema is None:
            return
        probe.key = self._caps.key(call.module, call.shape)
        if self._caps.get(probe.key) is not None:
            return
        function = call.module.function(call.method)

        def forward(num_calls: int) -> None:
            rows = [call.num_rows] * num_calls
            kwargs = schema.merge([call.bound] * num_calls, rows)
            with _adapters(call.module, [Rows(0, sum(rows), call.adapters)]):
                function(**kwargs)

        cap = measure_row_cap(
            forward,
            call.num_rows,
            max_rows=min(probe.max_rows, self._options.max_rows),
            num_repeats=probe.num_repeats,
            min_gain=self._options.min_row_gain,
            synchronize=lambda: _synchronize(call),
        )
        self._caps.put(probe.key, cap)
        logger.info("%s: at most %d rows of shape %s", call.module.name, cap.max_rows, call.shape)

    def _forward(self, calls: Sequence[ModuleCall]) -> list[Outcome]:
        first = calls[0]
        rows = [call.num_rows for call in calls]
        filled = [*calls, *self._filling(calls)]
        plan = _plan(filled)
        if len(filled) == 1 or first.schema is None:
            args, kwargs = _on_device(first)
        else:
            merged = first.schema.merge([call.bound for call in filled], _num_rows(filled))
            args, kwargs = (), merged
        function = first.module.function(first.method)
        with _adapters(first.module, plan):
            output = self._clock.run(
                first.device,
                lambda: function(*args, **kwargs),
                lambda seconds: self._account(calls, seconds),
            )
        parts = [output]
        if len(filled) > 1 and first.schema is not None:
            parts = first.schema.split(output, _num_rows(filled))[: len(calls)]
        self._counters.count_forward(first.module.name, len(calls), sum(rows))
        if first.module.is_decoder and first.method == "decode":
            return [Outcome(part, not_finite(part, first.module.name)) for part in parts]
        return [Outcome(part) for part in parts]

    def _filling(self, calls: Sequence[ModuleCall]) -> list[ModuleCall]:
        """Returns calls to repeat so that the rows reach a bucket; none if they cannot exactly."""
        buckets = self._options.batch_buckets
        total = sum(_num_rows(calls))
        if not buckets or not calls[0].module.is_denoiser or calls[0].schema is None:
            return []
        missing = min((bucket for bucket in buckets if bucket >= total), default=total) - total
        filling = []
        for call in sorted(calls, key=lambda call: -call.num_rows):
            while call.num_rows <= missing:
                filling.append(call)
                missing -= call.num_rows
        return [] if missing else filling

    def _account(self, calls: Sequence[ModuleCall], seconds: float) -> None:
        entry = calls[0].module
        self._counters.add_seconds(entry.name, seconds)
        if entry.is_denoiser:
            total = sum(call.num_rows for call in calls)
            for call in calls:
                call.scheduled.measured_seconds += seconds * call.num_rows / total


def _num_rows(calls: Sequence[ModuleCall]) -> list[int]:
    return [call.num_rows for call in calls]


def _plan(calls: Sequence[ModuleCall]) -> list[Rows]:
    plan, start = [], 0
    for call in calls:
        plan.append(Rows(start, start + call.num_rows, call.adapters))
        start += call.num_rows
    return plan


def _adapters(entry: ModuleEntry, plan: Sequence[Rows]) -> contextlib.AbstractContextManager[None]:
    if entry.adapters is None:
        return contextlib.nullcontext()
    return entry.adapters.applied(plan)


def _on_device(call: ModuleCall) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """Returns a call's own arguments, timesteps that were kept on the CPU moved to its device."""
    device = call.device
    if device.type == "cpu":
        return call.args, call.kwargs

    def moved(value: Any) -> Any:
        is_timestep = isinstance(value, torch.Tensor) and value.ndim == 1
        return value.to(device) if is_timestep else value

    return tuple(map(moved, call.args)), {name: moved(v) for name, v in call.kwargs.items()}


def _does_not_fit(call: ModuleCall) -> DoesNotFitError:
    return DoesNotFitError(
        f"{call.module.name} needs more memory than {call.device} has, for {call.num_rows} "
        f"rows of shape {call.shape or 'unknown'}: ask for a smaller image or for fewer at once"
    )


def _free_cache(call: ModuleCall) -> None:
    if call.device.type == "cuda":
        torch.cuda.empty_cache()


def _synchronize(call: ModuleCall) -> None:
    if call.device.type == "cuda":
        torch.cuda.synchronize(call.device)
