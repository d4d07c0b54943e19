"""The step-batching engine: its images are the stock pipeline's, whoever shares the batches."""

from __future__ import annotations

import asyncio
import threading
import weakref
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    EulerAncestralDiscreteScheduler,
    LCMScheduler,
    UNet2DModel,
)
from PIL import Image

from deployments.hf_diffusers import stepping
from deployments.hf_diffusers.stepping import (
    EngineClosedError,
    EngineOptions,
    Event,
    JobOptions,
    JobState,
    NotFiniteError,
    Progress,
    QueueFullError,
    StepEngine,
    UnknownAdapterError,
    UnknownPipelineError,
)
from tests.support.images_engine import (
    TOLERANCE,
    WAIT_S,
    create_inputs,
    create_pair,
    difference,
    engine_of,
    run_stock,
)
from tests.support.tiny_images import KINDS, create_family, create_pipeline
from truthgpt_serve.garbage import no_collections


@pytest.mark.parametrize("kind", KINDS)
def test_each_supported_pipeline_gives_the_stock_images(kind: str) -> None:
    ours, stock = create_pair(kind)
    image = Image.effect_noise((32, 32), 60).convert("RGB")
    more = {"image": image} if "controlnet" in kind else {}
    requests = [create_inputs(seed, kind=kind, steps=2 + seed, **more) for seed in range(3)]
    with engine_of(ours) as engine:
        jobs = [engine.submit("p", inputs) for inputs in requests]
        for job, inputs in zip(jobs, requests, strict=True):
            assert difference(job, run_stock(stock, inputs)) <= TOLERANCE
        statistics = engine.statistics()
    denoiser = "p.unet" if "p.unet" in statistics.forwards else "p.transformer"
    assert statistics.calls[denoiser] > statistics.forwards[denoiser]
    assert statistics.solo_fallbacks == 0


def test_a_pipeline_is_asked_once_where_it_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, stock = create_pair("sd")
    real, asked = type(ours)._execution_device, []

    def execution_device(pipeline: Any) -> torch.device:
        asked.append(pipeline)
        return real.fget(pipeline)

    inputs = create_inputs(3)
    expected = run_stock(stock, inputs)
    monkeypatch.setattr(type(ours), "_execution_device", property(execution_device))
    run_stock(stock, inputs)
    assert asked  # else Diffusers has another name for it: pipeline_copy.find_device
    asked.clear()
    with engine_of(ours) as engine:
        for _ in range(3):
            job = engine.submit("p", inputs)
            assert difference(job, expected) <= TOLERANCE
    assert len(asked) == 1


def test_four_tasks_over_one_set_of_weights_share_forwards() -> None:
    ours, stock = create_family("sd"), create_family("sd")
    image = Image.effect_noise((32, 32), 60).convert("RGB")
    mask = Image.new("L", (32, 32), 0)
    mask.paste(255, (8, 8, 24, 24))
    more: dict[str, dict[str, Any]] = {
        "text-to-image": {},
        "image-to-image": {"image": image, "strength": 0.7},
        "inpainting": {"image": image, "mask_image": mask, "strength": 1.0},
        "controlnet": {"image": image, "controlnet_conditioning_scale": 0.8},
    }
    assert set(more) == set(ours)
    requests = [
        (task, create_inputs(10 * index + seed, steps=4 + seed, **arguments))
        for seed in range(2)
        for index, (task, arguments) in enumerate(more.items())
    ]
    requests = [(task, _without_size(task, inputs)) for task, inputs in requests]
    with StepEngine() as engine:
        for task, pipeline in ours.items():
            engine.add_pipeline(task, pipeline)
        jobs = [engine.submit(task, inputs) for task, inputs in requests]
        for job, (task, inputs) in zip(jobs, requests, strict=True):
            assert difference(job, run_stock(stock[task], inputs)) <= TOLERANCE, task
        statistics = engine.statistics()
    unet = next(name for name in statistics.forwards if name.endswith(".unet"))
    assert (
        statistics.rows[unet] > 4 * statistics.forwards[unet]
    )  # two rows each: tasks were in one batch


def _without_size(task: str, inputs: dict[str, Any]) -> dict[str, Any]:
    unwanted = {"height", "width"} if task == "image-to-image" else set()
    return {name: value for name, value in inputs.items() if name not in unwanted}


def test_requests_join_and_leave_between_steps() -> None:
    ours, stock = create_pair()
    long, short = create_inputs(1, steps=40), create_inputs(2, steps=3)
    has_begun = threading.Event()
    with engine_of(ours) as engine:
        first = engine.submit(
            "p", long, JobOptions(on_event=lambda event: _set_at_step(event, 5, has_begun))
        )
        assert has_begun.wait(WAIT_S)
        second = engine.submit("p", short)
        assert difference(second, run_stock(stock, short)) <= TOLERANCE
        assert not first.done()
        assert difference(first, run_stock(stock, long)) <= TOLERANCE
        statistics = engine.statistics()
    assert statistics.calls["p.unet"] == 43
    assert statistics.forwards["p.unet"] == 40


def _set_at_step(event: Event, step: int, flag: threading.Event) -> None:
    if isinstance(event, Progress) and event.step >= step:
        flag.set()


def test_guidance_sizes_schedulers_and_counts_mix() -> None:
    ours, stock = create_pair()
    config = ours.scheduler.config
    # With clipping, rounding of 1e-7 in the stock pipeline's own denoiser moves a pixel by 2e-5.
    schedulers = [
        None,
        DDIMScheduler.from_config(config, clip_sample=False),
        EulerAncestralDiscreteScheduler.from_config(config),
        LCMScheduler.from_config(config, clip_sample=False),
    ]
    requests = [
        create_inputs(0, steps=3, guidance_scale=1.0),
        create_inputs(1, steps=5, guidance_scale=9.0, negative_prompt="rain"),
        create_inputs(2, steps=4, num_images_per_prompt=3),
        create_inputs(3, steps=4, height=48),
        {**create_inputs(4), "prompt": ["a boat", "a bird"]},
    ]
    plans = [(request, scheduler) for scheduler in schedulers for request in requests]
    with engine_of(ours) as engine:
        jobs = [
            engine.submit("p", item, JobOptions(scheduler=scheduler)) for item, scheduler in plans
        ]
        for job, (inputs, scheduler) in zip(jobs, plans, strict=True):
            assert difference(job, run_stock(stock, inputs, scheduler)) <= TOLERANCE
    assert type(ours.scheduler) is type(stock.scheduler)


@pytest.mark.parametrize("mode", ["solo", "exclusive"])
def test_other_modes_give_the_stock_images(mode: str) -> None:
    ours, stock = create_pair()
    scheduler_before = ours.scheduler
    requests = [create_inputs(seed, steps=2 + seed) for seed in range(3)]
    with engine_of(ours, mode=mode) as engine:
        jobs = [engine.submit("p", inputs) for inputs in requests]
        for job, inputs in zip(jobs, requests, strict=True):
            assert difference(job, run_stock(stock, inputs)) <= TOLERANCE
        statistics = engine.statistics()
    assert statistics.exclusive_runs == (3 if mode == "exclusive" else 0)
    assert statistics.forwards.get("p.unet", 0) == statistics.calls.get("p.unet", 0)
    assert ours.scheduler is scheduler_before


def test_exclusive_and_batched_pipelines_share_an_engine() -> None:
    ours, stock = create_pair()
    requests = [create_inputs(seed, steps=3) for seed in range(8)]
    with engine_of(ours) as engine:
        engine.add_pipeline("alone", ours, mode="exclusive")
        jobs = [
            engine.submit("alone" if seed % 2 else "p", inputs)
            for seed, inputs in enumerate(requests)
        ]
        for job, inputs in zip(jobs, requests, strict=True):
            assert difference(job, run_stock(stock, inputs)) <= TOLERANCE
        assert engine.statistics().exclusive_runs == 4


def test_a_pipeline_that_swaps_attention_processors_becomes_exclusive() -> None:
    ours, stock = create_pair()
    base = type(ours)

    class Swapping(base):  # type: ignore[misc, valid-type]  # made from a pipeline's own class
        def check_inputs(self, *args: Any, **kwargs: Any) -> None:
            self.unet.set_attn_processor(self.unet.attn_processors)
            super().check_inputs(*args, **kwargs)

    ours.__class__ = Swapping
    requests = [create_inputs(seed, steps=3) for seed in range(3)]
    for seed, inputs in enumerate(requests):
        inputs["generator"] = torch.Generator().manual_seed(seed)
    with engine_of(ours) as engine:
        assert engine.mode("p") == "batched"
        jobs = [engine.submit("p", inputs) for inputs in requests]
        images = [job.result(WAIT_S).images for job in jobs]
        assert engine.mode("p") == "exclusive"
        assert engine.statistics().exclusive_runs == 3
    for seed, made in enumerate(images):
        expected = run_stock(stock, create_inputs(seed, steps=3))
        assert float((made - expected).abs().max()) <= TOLERANCE


def test_a_pipeline_says_whether_its_calls_are_batched() -> None:
    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    pipeline = DDPMPipeline(unet=unet, scheduler=DDPMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    with engine_of(pipeline) as engine:
        assert engine.mode("p") == "batched"
        inputs = {"num_inference_steps": 3, "output_type": "np"}
        # In step with one another, which does not tell whether a batch mixes them up.
        jobs = [engine.submit("p", inputs) for _ in range(2)]
        for job in jobs:
            job.result(WAIT_S)
        assert engine.mode("p") == "solo"
        statistics = engine.statistics()
        assert statistics.calls["p.unet"] == statistics.forwards["p.unet"] == 6
        assert statistics.unbatchable_calls > 0
        jobs = [engine.submit("p", {**inputs, "num_inference_steps": steps}) for steps in (7, 9)]
        for job in jobs:
            job.result(WAIT_S)
        assert engine.mode("p") == "batched"
        statistics = engine.statistics()
    assert statistics.forwards["p.unet"] < statistics.calls["p.unet"]


def test_what_cannot_be_accepted_is_refused() -> None:
    ours = create_pipeline("sd")
    with engine_of(ours, max_ongoing=1, max_queued=1) as engine:
        with pytest.raises(UnknownPipelineError, match=r"'q'.*'p'"):
            engine.submit("q", {})
        with pytest.raises(UnknownAdapterError, match="'ink'"):
            engine.submit("p", {}, JobOptions(adapters={"ink": 1.0}))
        with pytest.raises(ValueError, match="on_event"):
            engine.submit("p", {"callback_on_step_end": print})
        with pytest.raises(ValueError, match="deadline_s is 0"):
            engine.submit("p", {}, JobOptions(deadline_s=0))
        with pytest.raises(ValueError, match="partial_images is -1"):
            engine.submit("p", {}, JobOptions(partial_images=-1))
        with pytest.raises(ValueError, match="exists already"):
            engine.add_pipeline("p", ours)
        with pytest.raises(ValueError, match="no adapter"):
            engine.add_pipeline("r", ours, adapters=["ink"])
        jobs = [engine.submit("p", create_inputs(seed, steps=20)) for seed in range(2)]
        with pytest.raises(QueueFullError, match="max_queued"):
            engine.submit("p", create_inputs(3))
        assert engine.statistics().refused == 1
        for job in jobs:
            job.result(WAIT_S)
    assert not engine.alive
    with pytest.raises(EngineClosedError):
        engine.submit("p", {})
    engine.close()


@pytest.mark.parametrize(
    ("name", "value"), [("max_rows", 0), ("max_queued", -1), ("aging", -1.0), ("min_row_gain", -1)]
)
def test_options_out_of_range_name_themselves(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"EngineOptions.{name} is {value}"):
        EngineOptions(**{name: value})


@pytest.mark.parametrize("output_type", ["pt", "pil", "np"])
def test_an_image_that_is_not_finite_is_an_error_of_its_job_alone(output_type: str) -> None:
    ours, stock = create_pair()
    good = create_inputs(1)
    with engine_of(ours) as engine:
        embeds = torch.full((1, 77, ours.unet.config.cross_attention_dim), torch.nan)
        bad = {**create_inputs(2), "prompt_embeds": embeds, "output_type": output_type}
        del bad["prompt"]
        failing = engine.submit("p", {**bad, "guidance_scale": 1.0})
        working = engine.submit("p", good)
        with pytest.raises(NotFiniteError, match="NaN"):
            failing.result(WAIT_S)
        assert difference(working, run_stock(stock, good)) <= TOLERANCE
    assert failing.state is JobState.FAILED
    assert working.state is JobState.COMPLETED


def test_latents_that_are_not_finite_are_an_error_too() -> None:
    ours = create_pipeline("sd")
    with engine_of(ours) as engine:
        inputs = create_inputs(2, output_type="latent")
        inputs["latents"] = torch.full((1, 4, 16, 16), torch.nan)
        with pytest.raises(NotFiniteError):
            engine.submit("p", inputs).result(WAIT_S)


def test_a_wrong_argument_fails_its_job_with_the_pipelines_own_error() -> None:
    with engine_of(create_pipeline("sd")) as engine:
        with pytest.raises(ValueError, match="divisible by 8"):
            engine.submit("p", create_inputs(1, height=33)).result(WAIT_S)
        with pytest.raises(ValueError, match="`prompt` has to be"):
            engine.submit("p", {**create_inputs(1), "prompt": 3}).result(WAIT_S)
        assert engine.submit("p", create_inputs(1)).result(WAIT_S).images.shape[0] == 1
        assert engine.statistics().failed == 2


async def test_a_job_can_be_awaited_and_cancelled_from_asyncio() -> None:
    ours = create_pipeline("sd")
    with engine_of(ours) as engine:
        done = await asyncio.wrap_future(engine.submit("p", create_inputs(1)).future)
        assert done.images.shape[0] == 1
        job = engine.submit("p", create_inputs(2, steps=900))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.wrap_future(job.future), 0.2)
        for _ in range(200):
            if engine.statistics().ongoing == 0:
                break
            await asyncio.sleep(0.02)
        assert engine.statistics().ongoing == 0
        assert job.state is JobState.CANCELLED


def test_a_finished_job_and_its_image_are_freed_at_once() -> None:
    ours, _ = create_pair()
    seen: list[bool] = []
    with engine_of(ours) as engine, no_collections():
        job = engine.submit("p", create_inputs(0, steps=2))
        job.add_done_callback(lambda job: seen.append(job.done()))
        found = weakref.ref(job.result(WAIT_S)), weakref.ref(job)
        del job
        engine.submit("p", create_inputs(1, steps=1)).result(WAIT_S)  # the engine has let go of it
        assert seen == [True]
        assert [reference() for reference in found] == [None, None]


def test_the_public_names_are_those_of_the_package() -> None:
    public = {name for name in vars(stepping) if name[0].isupper()}
    assert public == set(stepping.__all__)
