"""Calls a job's pipeline: a clone with proxies inside a greenlet, or exclusively the real one."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from deployments.hf_diffusers.stepping.errors import JobCancelled, NeedsExclusive
from deployments.hf_diffusers.stepping.pipelines.nan_check import not_finite
from deployments.hf_diffusers.stepping.pipelines.pipeline_copy import (
    PROGRESS_BAR_OFF,
    clone_pipeline,
)
from deployments.hf_diffusers.stepping.pipelines.step_progress import StepFollower
from deployments.hf_diffusers.stepping.scheduling.scheduled_job import ScheduledJob

OnStep = Callable[[ScheduledJob], None]


def run_batched(scheduled: ScheduledJob, on_step: OnStep, *, cpu_timesteps: bool) -> None:
    """Runs the stock `__call__` on a clone; inside a job's greenlet. Sets the job's output."""
    states = [(item, item.get_state()) for item in _generators(scheduled.inputs)]
    clone = clone_pipeline(
        scheduled.entry.pipeline,
        scheduled.entry.proxies,
        scheduled.scheduler,
        cpu_timesteps=cpu_timesteps and scheduled.entry.is_on_gpu,
        device=scheduled.entry.device,
    )
    scheduled.clone = clone
    try:
        _call(scheduled, clone, on_step)
    except NeedsExclusive:
        # The job will run again from its beginning, with the same noise.
        for generator, state in states:
            generator.set_state(state)
        raise


def run_exclusively(scheduled: ScheduledJob, on_step: OnStep) -> None:
    """Runs the stock `__call__` on the real pipeline, with no other call; sets its output."""
    pipeline = scheduled.entry.pipeline
    with contextlib.ExitStack() as stack:
        stack.enter_context(_borrowed(pipeline, scheduled.scheduler))
        for entry in scheduled.entry.modules.values():
            stack.enter_context(_leaves_when_cancelled(entry.module, scheduled))
            if entry.adapters is not None:
                stack.enter_context(entry.adapters.switched(scheduled.adapters))
        _call(scheduled, pipeline, on_step)


def _call(scheduled: ScheduledJob, pipeline: Any, on_step: OnStep) -> None:
    if scheduled.cancel_requested:
        raise JobCancelled
    inputs = {name: _evaluated(value) for name, value in scheduled.inputs.items()}
    follower = StepFollower(scheduled, pipeline, on_step)
    output = pipeline(**inputs, **follower.arguments())
    error = not_finite(output, scheduled.entry.name)
    if error is not None:
        raise error
    scheduled.output = output


def _generators(inputs: Mapping[str, Any]) -> list[torch.Generator]:
    value = inputs.get("generator")
    items = value if isinstance(value, (list, tuple)) else [value]
    return [item for item in items if isinstance(item, torch.Generator)]


def _evaluated(value: Any) -> Any:
    is_factory = callable(value) and not isinstance(value, (type, torch.nn.Module))
    return value() if is_factory else value


@contextlib.contextmanager
def _borrowed(pipeline: Any, scheduler: Any) -> Iterator[None]:
    """Gives the real pipeline another scheduler and no progress bar, and then takes them away."""
    state = pipeline.__dict__
    before = {name: state.get(name) for name in ("scheduler", "_progress_bar_config")}
    if before["scheduler"] is not None or scheduler is not None:
        state["scheduler"] = copy.deepcopy(scheduler or before["scheduler"])
    state["_progress_bar_config"] = dict(PROGRESS_BAR_OFF)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                state.pop(name, None)
            else:
                state[name] = value


@contextlib.contextmanager
def _leaves_when_cancelled(module: torch.nn.Module, scheduled: ScheduledJob) -> Iterator[None]:
    def check(*_: Any) -> None:
        if scheduled.cancel_requested:
            raise JobCancelled

    handle = module.register_forward_pre_hook(check)
    try:
        yield
    finally:
        handle.remove()
