"""Compares the step engine with stock pipelines run alone, over any number of random requests.

Does not know how the engine works: requests of differing steps, guidance, sizes, schedulers and
adapters go in at random times, some are cancelled, and each image must be the one that a second
pipeline of the same weights makes for the request alone. Needs neither Ray nor the service.
"""

from __future__ import annotations

import math
import random
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline

from deployments.hf_diffusers.stepping import (
    EngineOptions,
    Event,
    Job,
    JobOptions,
    Progress,
    StepEngine,
)
from tests.fuzz.images.plans import (
    ADAPTERS,
    Plan,
    build_inputs,
    build_scheduler,
    draw_plan,
)
from tests.support.tiny_images import CALL_DEFAULTS, create_family, create_lora

TOLERANCE = 1e-5
"""Largest difference of a pixel in [0, 1] from the stock pipeline's, in float32 on the CPU."""

PSNR_FLOOR = 35.0
"""Least peak signal-to-noise ratio in dB to the stock pipeline's image, in bfloat16: a batch of
another size sums in another order, and 8 bits of mantissa show it."""

TIMEOUT_S = 120.0
"""Longest wait for one request."""

FIRST_ADAPTER_SEED = 100


@dataclass
class Report:
    """What a run found."""

    kind: str
    num_compared: int = 0
    num_cancelled: int = 0
    worst_difference: float = 0.0
    """Of a pixel in [0, 1]."""
    worst_psnr: float = math.inf
    """In dB."""
    forwards: int = 0
    """Denoiser forwards that the engine ran."""
    calls: int = 0
    """Denoiser calls that the requests made."""
    fault: str | None = None
    """The first mismatch."""


def run_fuzz(
    kind: str,
    num_requests: int,
    seed: int,
    *,
    dtype: torch.dtype = torch.float32,
    psnr_floor: float = PSNR_FLOOR,
    options: EngineOptions | None = None,
) -> Report:
    """Runs random requests through the engine and, one by one, through stock pipelines.

    Stops at the first request whose image differs by more than TOLERANCE (in another dtype than
    float32: whose PSNR is below `psnr_floor`), or whose outcome is another.
    """
    stock, adapters = _create_family(kind, dtype)
    shared, _ = _create_family(kind, dtype)
    generator = random.Random(f"{kind} {seed}")
    plans = [
        draw_plan(generator, kind, tuple(stock), adapters=adapters) for _ in range(num_requests)
    ]
    report = Report(kind)
    engine = StepEngine(options or EngineOptions(max_ongoing=12, max_queued=num_requests))
    try:
        for task, pipeline in shared.items():
            engine.add_pipeline(task, pipeline, adapters=ADAPTERS if adapters else ())
        jobs = _submit_all(engine, kind, plans, shared)
        for index, (plan, job) in enumerate(zip(plans, jobs, strict=True)):
            fault = _compare(report, plan, job, stock, kind, dtype, psnr_floor)
            if fault is not None:
                report.fault = f"seed {seed}, request {index}: {fault}\n{plan}"
                break
        _count(report, engine)
    finally:
        engine.close()
    return report


def _create_family(kind: str, dtype: torch.dtype) -> tuple[dict[str, DiffusionPipeline], bool]:
    """Returns the pipelines of a kind over one set of weights, and whether they have adapters."""
    family = create_family(kind)
    pipeline = family["text-to-image"]
    can_adapt = hasattr(pipeline, "load_lora_weights")
    if can_adapt:
        _load_adapters(pipeline)
    for member in family.values():
        if dtype != torch.float32:
            member.to(dtype=dtype)
    return family, can_adapt


def _load_adapters(pipeline: DiffusionPipeline) -> None:
    for number, name in enumerate(ADAPTERS):
        weights = create_lora(pipeline, FIRST_ADAPTER_SEED + number)
        prefix = next(iter(weights)).partition(".")[0]
        with warnings.catch_warnings():
            # PEFT asks whether a second adapter is meant: it is.
            warnings.filterwarnings("ignore", "Already found a `peft_config`", UserWarning)
            _denoiser(pipeline).load_lora_adapter(weights, adapter_name=name, prefix=prefix)


def _denoiser(pipeline: DiffusionPipeline) -> Any:
    return pipeline.components.get("unet") or pipeline.components["transformer"]


def _submit_all(
    engine: StepEngine, kind: str, plans: Sequence[Plan], family: dict[str, DiffusionPipeline]
) -> list[Job]:
    jobs = []
    for plan in plans:
        time.sleep(plan.delay_s)
        pipeline = family[plan.task]
        canceller = _Canceller(engine, plan)
        job = engine.submit(
            plan.task,
            build_inputs(plan, pipeline, CALL_DEFAULTS.get(kind, {})),
            JobOptions(
                scheduler=build_scheduler(plan, pipeline),
                adapters=plan.adapters,
                num_steps=plan.arguments["num_inference_steps"],
                on_event=canceller,
            ),
        )
        canceller.job = job
        if plan.cancel_at_step == 0:
            engine.cancel(job)
        jobs.append(job)
    return jobs


class _Canceller:
    """Cancels its job once it has done the planned number of steps."""

    def __init__(self, engine: StepEngine, plan: Plan) -> None:
        self._engine = engine
        self._step = plan.cancel_at_step
        self.job: Job | None = None

    def __call__(self, event: Event) -> None:
        if self._step is None or self.job is None or not isinstance(event, Progress):
            return
        if event.step >= self._step:
            self._engine.cancel(self.job)


def _compare(
    report: Report,
    plan: Plan,
    job: Job,
    family: dict[str, DiffusionPipeline],
    kind: str,
    dtype: torch.dtype,
    psnr_floor: float,
) -> str | None:
    """Returns what is wrong with the outcome of a job, None if nothing is."""
    try:
        images = job.result(TIMEOUT_S).images
    except CancelledError:
        report.num_cancelled += 1
        return None if plan.cancel_at_step is not None else "cancelled without being asked"
    except Exception as raised:
        return f"the engine raised {type(raised).__name__}: {raised}"
    expected = _run_alone(plan, family[plan.task], kind)
    if images.shape != expected.shape or not bool(torch.isfinite(images).all()):
        return f"shape {tuple(images.shape)} instead of {tuple(expected.shape)}, or not finite"
    difference = (images.double() - expected.double()).abs()
    error = float(difference.square().mean())
    psnr = -10 * math.log10(error) if error > 0 else math.inf
    report.num_compared += 1
    report.worst_difference = max(report.worst_difference, float(difference.max()))
    report.worst_psnr = min(report.worst_psnr, psnr)
    if dtype == torch.float32 and float(difference.max()) > TOLERANCE:
        return f"a pixel differs by {float(difference.max()):.2e}, more than {TOLERANCE:.0e}"
    if dtype != torch.float32 and psnr < psnr_floor:
        return f"the PSNR is {psnr:.1f} dB, below {psnr_floor} dB"
    return None


def _run_alone(plan: Plan, pipeline: DiffusionPipeline, kind: str) -> Any:
    """Returns the images that the stock pipeline makes of a plan, float in [0, 1]."""
    denoiser, own = _denoiser(pipeline), pipeline.scheduler
    if plan.adapters:
        denoiser.enable_lora()
        denoiser.set_adapters(list(plan.adapters), list(plan.adapters.values()))
    elif getattr(denoiser, "peft_config", None):
        denoiser.disable_lora()
    pipeline.scheduler = build_scheduler(plan, pipeline) or own
    try:
        return pipeline(**build_inputs(plan, pipeline, CALL_DEFAULTS.get(kind, {}))).images
    finally:
        pipeline.scheduler = own


def _count(report: Report, engine: StepEngine) -> None:
    statistics = engine.statistics()
    for name in statistics.forwards:
        if name.rpartition(".")[2] in ("unet", "transformer"):
            report.forwards += statistics.forwards[name]
            report.calls += statistics.calls[name]
