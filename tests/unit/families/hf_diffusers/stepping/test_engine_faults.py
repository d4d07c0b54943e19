"""The step-batching engine when things go wrong: memory, faulty calls, a lost device."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler

from deployments.hf_diffusers.stepping import (
    DoesNotFitError,
    EngineFailedError,
    EngineOptions,
    JobOptions,
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


def _limit_memory(module: Any, max_numbers: int) -> None:
    def check(sample: Any) -> None:
        if sample.numel() > max_numbers:
            raise torch.OutOfMemoryError(f"tried to allocate {sample.numel()} numbers")

    before_forward(module, check)


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
    assert statistics.rows["p.unet"] >= 2 * statistics.forwards["p.unet"]


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

    before_forward(ours.unet, check)
    guilty = create_inputs(0, guidance_scale=1.0)
    requests = [create_inputs(seed, guidance_scale=1.0) for seed in range(1, 4)]
    with engine_of(ours) as engine:
        plain = DDIMScheduler.from_config(ours.scheduler.config, clip_sample=False)
        guilty["latents"] = torch.full((1, 4, 16, 16), 7.0)
        jobs = [
            engine.submit("p", item, JobOptions(scheduler=plain)) for item in [guilty, *requests]
        ]
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

    before_forward(ours.unet, check)
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

    before_forward(ours.unet, check)
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


def test_a_failed_job_keeps_no_tensor_alive() -> None:
    seen: list[weakref.ref[Any]] = []

    def check(sample: Any) -> None:
        seen.append(weakref.ref(sample))
        raise RuntimeError("broken")

    ours = create_pipeline("sd")
    before_forward(ours.unet, check)
    with engine_of(ours) as engine:
        job = engine.submit("p", create_inputs(1))
        error = job.exception(WAIT_S)
        assert isinstance(error, RuntimeError)
        assert "in check" in "".join(error.__notes__)
        gc.collect()
        assert seen
        assert [item for item in seen if item() is not None] == []


@pytest.mark.parametrize("steps", ["20", 0, -1, 2.5, True])
def test_a_number_of_steps_that_is_none_is_refused_at_once(steps: Any) -> None:
    with engine_of(create_pair()[0]) as engine:
        with pytest.raises(ValueError, match=r"inputs\['num_inference_steps'\] is .* whole number"):
            engine.submit("p", {**create_inputs(0), "num_inference_steps": steps})
        with pytest.raises(ValueError, match=r"num_steps is .* whole number"):
            JobOptions(num_steps=steps)


@pytest.mark.parametrize("scheduler", ["ddim", {}, 3])
def test_a_scheduler_that_is_none_is_refused_at_once(scheduler: Any) -> None:
    with pytest.raises(ValueError, match="which is no scheduler: give an object"):
        JobOptions(scheduler=scheduler)
