from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest
import torch

from deployments.hf_diffusers.stepping import EngineOptions
from tests.fuzz.images import compare
from tests.fuzz.images.compare import TOLERANCE, run_fuzz
from tests.fuzz.images.plans import build_inputs, draw_plan
from tests.support.tiny_images import KINDS

NUM_REQUESTS = 16
"""For each kind; `python -m tests.fuzz.images` runs any number."""


@pytest.mark.long("compares every pipeline")
@pytest.mark.parametrize("kind", KINDS)
def test_random_requests_get_what_the_stock_pipeline_makes_alone(kind: str) -> None:
    report = run_fuzz(kind, NUM_REQUESTS, seed=11)
    assert report.fault is None
    assert report.num_compared + report.num_cancelled == NUM_REQUESTS
    assert report.num_compared > NUM_REQUESTS // 2
    assert report.worst_difference <= TOLERANCE
    assert report.forwards < report.calls  # some shared a forward; how many, the timing decides


@pytest.mark.long("compares every pipeline")
def test_bfloat16_keeps_its_floor() -> None:
    report = run_fuzz("sdxl", 12, seed=3, dtype=torch.bfloat16)
    assert report.fault is None
    assert compare.PSNR_FLOOR <= report.worst_psnr < 90


@pytest.mark.long("compares every pipeline")
def test_filled_buckets_change_nothing() -> None:
    options = EngineOptions(max_ongoing=8, max_queued=40, batch_buckets=(1, 2, 4, 8))
    report = run_fuzz("sd", 12, seed=5, options=options)
    assert report.fault is None


def test_a_wrong_image_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison itself can fail: a stock run of other seeds is a mismatch."""

    def with_other_seeds(*arguments: Any) -> dict[str, Any]:
        inputs = build_inputs(*arguments)
        generators = inputs["generator"]
        for generator in generators if isinstance(generators, list) else [generators]:
            generator.manual_seed(1)
        return inputs

    honest = compare._run_alone

    def dishonest(*arguments: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(compare, "build_inputs", with_other_seeds)
            return honest(*arguments)

    monkeypatch.setattr(compare, "_run_alone", dishonest)
    report = run_fuzz("flux", 3, seed=2)
    assert report.fault is not None
    assert "seed 2, request" in report.fault
    assert "Plan(" in report.fault


def test_plans_are_the_same_for_a_seed_and_cover_what_they_promise() -> None:
    tasks = ("text-to-image", "inpainting")

    def draw_all(seed: int) -> list[Any]:
        generator = random.Random(seed)
        return [draw_plan(generator, "sdxl", tasks, adapters=True) for _ in range(300)]

    plans = draw_all(4)
    assert plans == draw_all(4) != draw_all(5)
    assert {plan.task for plan in plans} == set(tasks)
    assert {plan.arguments["guidance_scale"] for plan in plans} == {1.0, 2.0, 5.0, 7.5}
    assert len({plan.arguments["num_inference_steps"] for plan in plans}) == 7
    assert len({plan.size for plan in plans}) == 9
    assert Counter(len(plan.adapters) for plan in plans).keys() == {0, 1, 2}
    assert len({plan.scheduler and plan.scheduler[0] for plan in plans}) == 9
    assert {len(plan.seeds) for plan in plans} == {1, 2}
    assert 5 < sum(plan.cancel_at_step is not None for plan in plans) < 100
    assert sum("negative_prompt" in plan.arguments for plan in plans) > 50


@pytest.mark.long("runs the program on every pipeline")
def test_command() -> None:
    options = "--pipeline sdxl --requests 4 --dtype bfloat16 --psnr-floor 200"
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.images", *options.split()],
        capture_output=True,
        text=True,
        timeout=100,
    )
    # Nothing in bfloat16 is that close: the command shows how it reports a mismatch.
    assert done.returncode == 1
    assert "below 200.0 dB" in done.stderr
    assert "seed 1, request" in done.stderr
