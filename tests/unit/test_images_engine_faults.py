"""The step-batching engine when things go wrong: memory, faulty calls, cancelled jobs, closing."""

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
from diffusers import DDIMScheduler

from deployments.hf_diffusers.stepping import (
    DoesNotFitError,
    EngineFailedError,
    EngineOptions,
    Event,
    Job,
    JobState,
    Progress,
    QueueFullError,
    StepEngine,
)
from deployments.hf_diffusers.tiny_models import create_pipeline
from tests.unit.images_engine import (
    TOLERANCE,
    WAIT_S,
    create_inputs,
    create_pair,
    difference,
    engine_of,
    run_stock,
)


def _before_forward(module: Any, check: Callable[[Any], None]) -> None:
    """Calls `check(sample)` before each forward of a UNet."""
    module.register_forward_pre_hook(
        lambda _, args, kwargs: check(args[0] if args else kwargs["sample"]), with_kwargs=True
    )


def _limit_memory(module: Any, max_numbers: int) -> None:
    def check(sample: Any) -> None:
        if sample.numel() > max_numbers:
            raise torch.OutOfMemoryError(f"tried to allocate {sample.numel()} numbers")

    _before_forward(module, check)


def test_a_batch_that_does_not_fit_is_split_and_nothing_fails() -> None:
    ours, stock = create_pair()
    _limit_memory(ours.unet, 5 * 4 * 16 * 16)  # 5 rows of (4, 16, 16); each request has two
    requests = [create_inputs(seed, steps=6) for seed in range(6)]
    with engine_of(ours) as engine:
        jobs = [engine.submit("p", inputs) for inputs in requests]
        for job, inputs in zip(jobs, requests, strict=True):
            assert difference(job, run_stock(stock, inputs)) <= TOLERANCE
        statistics = engine.statistics()
    # The cap of the shape falls from 12 rows to 6 and 3, so that later steps do not try in vain.
    assert 1 <= statistics.out_of_memory_splits <= 4
    assert statistics.failed == statistics.solo_fallbacks == 0
    assert statistics.mean_rows["p.unet"] >= 2


def test_a_request_that_does_not_fit_by_itself_fails_alone_and_says_why() -> None:
    ours, stock = create_pair()
    _limit_memory(ours.unet, 2 * 4 * 16 * 16)
    small = create_inputs(1)
    with engine_of(ours) as engine:
        large = engine.submit("p", create_inputs(2, height=64, width=64))
        fitting = engine.submit("p", small)
        with pytest.raises(DoesNotFitError, match=r"p\.unet .* 2 rows of shape 4x32x32"):
            large.result(WAIT_S)
        assert difference(fitting, run_stock(stock, small)) <= TOLERANCE
        assert engine.statistics().failed == 1


def test_only_the_guilty_call_of_a_batch_fails() -> None:
    ours, stock = create_pair()

    def check(sample: Any) -> None:
        if bool((sample == 7).any()):
            raise RuntimeError("cannot digest a seven")

    _before_forward(ours.unet, check)
    guilty = create_inputs(0, guidance_scale=1.0)
    requests = [create_inputs(seed, guidance_scale=1.0) for seed in range(1, 4)]
    with engine_of(ours) as engine:
        plain = DDIMScheduler.from_config(ours.scheduler.config, clip_sample=False)
        guilty["latents"] = torch.full((1, 4, 16, 16), 7.0)
        jobs = [engine.submit("p", item, scheduler=plain) for item in [guilty, *requests]]
        with pytest.raises(RuntimeError, match="cannot digest a seven"):
            jobs[0].result(WAIT_S)
        for job, inputs in zip(jobs[1:], requests, strict=True):
            assert difference(job, run_stock(stock, inputs, plain)) <= TOLERANCE
        statistics = engine.statistics()
    assert statistics.failed == 1
    assert statistics.solo_fallbacks >= 1


def test_a_module_that_fails_only_in_batches_ends_up_alone() -> None:
    ours, stock = create_pair()

    def check(sample: Any) -> None:
        if sample.shape[0] > 2:
            raise RuntimeError("made for one request")

    _before_forward(ours.unet, check)
    requests = [create_inputs(seed, steps=8) for seed in range(3)]
    with engine_of(ours) as engine:
        jobs = [engine.submit("p", inputs) for inputs in requests]
        for job, inputs in zip(jobs, requests, strict=True):
            assert difference(job, run_stock(stock, inputs)) <= TOLERANCE
        statistics = engine.statistics()
    assert statistics.solo_fallbacks == 3  # MAX_FALSE_ALARMS: not one more after them
    assert statistics.failed == 0


def test_a_lost_device_fails_all_jobs_and_the_engine() -> None:
    ours = create_pipeline("sd")

    def check(sample: Any) -> None:
        raise torch.AcceleratorError("an illegal memory access was encountered")

    _before_forward(ours.unet, check)
    engine = StepEngine(EngineOptions(max_ongoing=2))
    engine.add_pipeline("p", ours)
    jobs = [engine.submit("p", create_inputs(seed)) for seed in range(4)]
    for job in jobs:
        with pytest.raises(EngineFailedError, match="illegal memory access"):
            job.result(WAIT_S)
    engine.close()
    assert not engine.alive
    with pytest.raises(EngineFailedError):
        engine.submit("p", create_inputs(1))


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
            holder.append(engine.submit("p", create_inputs(1, steps=500), on_event=note))
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

    _before_forward(ours.unet, check)
    engine = StepEngine()
    engine.add_pipeline("p", ours)
    engine.submit("p", create_inputs(1))
    assert has_begun.wait(WAIT_S)
    with pytest.raises(TimeoutError, match=r"0\.2 s"):
        engine.close(timeout_s=0.2)
    may_end.set()
    engine.close()


@pytest.mark.timeout(300)
def test_a_thousand_random_cancellations_leave_nothing_behind() -> None:
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
        for seed in range(1000):
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
        assert statistics.completed + statistics.cancelled == 1000
        assert statistics.cancelled > 300
        states = [job.state for job in jobs]
        assert states.count(JobState.CANCELLED) == statistics.cancelled
        jobs.clear()
        gc.collect()
        # By type: `isinstance` asks objects for `__class__`, and some in torch warn when asked.
        alive = [item for item in gc.get_objects() if issubclass(type(item), greenlet.greenlet)]
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


def test_a_failed_job_keeps_no_tensor_alive() -> None:
    seen: list[weakref.ref[Any]] = []

    def check(sample: Any) -> None:
        seen.append(weakref.ref(sample))
        raise RuntimeError("broken")

    ours = create_pipeline("sd")
    _before_forward(ours.unet, check)
    with engine_of(ours) as engine:
        job = engine.submit("p", create_inputs(1))
        error = job.exception(WAIT_S)
        assert isinstance(error, RuntimeError)
        assert "in check" in "".join(error.__notes__)
        gc.collect()
        assert seen
        assert [item for item in seen if item() is not None] == []
