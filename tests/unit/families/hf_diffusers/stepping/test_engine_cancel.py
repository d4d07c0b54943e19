"""Cancelled jobs leave within a step, and nothing of them stays; closing ends all."""

from __future__ import annotations

import functools
import gc
import random
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import CancelledError
from typing import Any

import greenlet
import pytest
import torch

from deployments.hf_diffusers.stepping import (
    EngineOptions,
    Event,
    Job,
    JobOptions,
    JobState,
    Progress,
    QueueFullError,
    StepEngine,
)
from tests.support.images_engine import (
    TOLERANCE,
    WAIT_S,
    before_forward,
    create_inputs,
    create_pair,
    difference,
    engine_of,
    run_stock,
)
from tests.support.tiny_images import create_pipeline

NUM_JOBS = 400


def test_a_cancelled_job_leaves_within_one_step_and_others_stay_right() -> None:
    ours, stock = create_pair()
    steps_after: list[int] = []
    is_cancelled = threading.Event()
    holder: list[Job] = []

    def note(event: Event) -> None:
        if not isinstance(event, Progress):
            return
        if is_cancelled.is_set():
            steps_after.append(event.step)
        if event.step == 5:
            engine.cancel(holder[0])
            is_cancelled.set()

    other = create_inputs(2, steps=12)
    with engine_of(ours) as engine:
        # The listener needs the job, which is there only once it is submitted.
        with engine._lock:
            holder.append(
                engine.submit("p", create_inputs(1, steps=500), JobOptions(on_event=note))
            )
        staying = engine.submit("p", other)
        with pytest.raises(CancelledError):
            holder[0].result(WAIT_S)
        assert difference(staying, run_stock(stock, other)) <= TOLERANCE
        assert engine.statistics().cancelled == 1
    assert len(steps_after) <= 1
    assert holder[0].cancelled()


def test_a_cancelled_exclusive_job_leaves_within_one_step() -> None:
    ours, stock = create_pair()
    inputs = create_inputs(2)
    with engine_of(ours, mode="exclusive") as engine:
        job = engine.submit("p", create_inputs(1, steps=900))
        while job.progress.step < 3:
            time.sleep(0.005)
        engine.cancel(job)
        step = job.progress.step
        with pytest.raises(CancelledError):
            job.result(WAIT_S)
        assert job.progress.step <= step + 1
        assert difference(engine.submit("p", inputs), run_stock(stock, inputs)) <= TOLERANCE
    assert not ours.unet._forward_pre_hooks


def test_a_queued_job_leaves_at_once() -> None:
    with engine_of(create_pipeline("sd"), max_ongoing=1) as engine:
        running = engine.submit("p", create_inputs(1, steps=300))
        while running.progress.step < 1:
            time.sleep(0.005)
        queued = engine.submit("p", create_inputs(2))
        engine.cancel(queued)
        assert queued.cancelled()
        assert not running.done()
        assert engine.statistics().queued == 0
        engine.cancel(running)
        engine.cancel(running)
        engine.cancel(queued)


def test_a_pipeline_that_swallows_its_cancellation_is_let_go() -> None:
    ours = create_pipeline("sd")
    base = type(ours)

    class Stubborn(base):  # type: ignore[misc, valid-type]  # made from a pipeline's own class
        @functools.wraps(base.__call__)
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            try:
                return super().__call__(*args, **kwargs)
            except BaseException:
                return super().__call__(*args, **kwargs)

    ours.__class__ = Stubborn
    with engine_of(ours) as engine:
        job = engine.submit("p", create_inputs(1, steps=900))
        while job.progress.step < 2:
            time.sleep(0.005)
        engine.cancel(job)
        with pytest.raises(CancelledError):
            job.result(WAIT_S)


def test_close_cancels_all_and_ends_the_thread() -> None:
    engine = StepEngine(EngineOptions(max_ongoing=2))
    engine.add_pipeline("p", create_pipeline("sd"))
    jobs = [engine.submit("p", create_inputs(seed, steps=900)) for seed in range(5)]
    while jobs[0].progress.step < 2:
        time.sleep(0.005)
    engine.close(timeout_s=20)
    assert all(job.cancelled() for job in jobs)
    assert not any(thread.name == "step-engine" for thread in threading.enumerate())
    assert engine.statistics().cancelled == 5
    assert engine.statistics().ongoing == engine.statistics().queued == 0


def test_close_says_when_a_forward_does_not_end_in_time() -> None:
    ours = create_pipeline("sd")
    has_begun, may_end = threading.Event(), threading.Event()

    def check(sample: Any) -> None:
        has_begun.set()
        may_end.wait(WAIT_S)

    before_forward(ours.unet, check)
    engine = StepEngine()
    engine.add_pipeline("p", ours)
    engine.submit("p", create_inputs(1))
    assert has_begun.wait(WAIT_S)
    with pytest.raises(TimeoutError, match=r"0\.2 s"):
        engine.close(timeout_s=0.2)
    may_end.set()
    engine.close()


@pytest.mark.long("cancels a thousand jobs")
@pytest.mark.timeout(300)
def test_hundreds_of_random_cancellations_leave_nothing_behind() -> None:
    ours, stock = create_pair()
    generator = random.Random(1)
    latents: list[weakref.ref[Any]] = []

    def make(seed: int) -> Callable[[], torch.Generator]:
        def factory() -> torch.Generator:
            made = torch.Generator().manual_seed(seed)
            latents.append(weakref.ref(made))
            return made

        return factory

    with engine_of(ours, max_ongoing=16, max_queued=16) as engine:
        jobs: list[Job] = []
        for seed in range(NUM_JOBS):
            inputs = create_inputs(seed, steps=generator.randint(1, 6), generator=make(seed))
            jobs.append(_submit_when_free(engine, inputs))
            if generator.random() < 0.9:
                victim = generator.choice(jobs[-20:])
                time.sleep(generator.random() * 0.004)
                engine.cancel(victim)
        for job in jobs:
            job.future.exception(WAIT_S) if not job.cancelled() else None
        statistics = engine.statistics()
        assert statistics.ongoing == statistics.queued == statistics.failed == 0
        assert statistics.completed + statistics.cancelled == NUM_JOBS
        assert statistics.cancelled > 0.3 * NUM_JOBS
        states = [job.state for job in jobs]
        assert states.count(JobState.CANCELLED) == statistics.cancelled
        jobs.clear()
        gc.collect()
        # By type: `isinstance` asks objects for `__class__`, and some in torch warn when asked.
        # Those of gevent belong to a client library that another test used.
        alive = [
            item
            for item in gc.get_objects()
            if issubclass(type(item), greenlet.greenlet)
            and not type(item).__module__.startswith("gevent")
        ]
        assert [item for item in alive if not item.dead and item.parent is not None] == []
        assert [item for item in latents if item() is not None] == []
        inputs = create_inputs(1)
        assert difference(engine.submit("p", inputs), run_stock(stock, inputs)) <= TOLERANCE
    assert not any(thread.name == "step-engine" for thread in threading.enumerate())


def _submit_when_free(engine: StepEngine, inputs: dict[str, Any]) -> Job:
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        try:
            return engine.submit("p", inputs)
        except QueueFullError:
            time.sleep(0.005)
    raise TimeoutError("the queue stayed full")
