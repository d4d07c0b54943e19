"""What the tests of the image engine share: tiny pipelines, requests and what stock makes of them.

Does not know the service: the engine is used as from a plain script.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from deployments.hf_diffusers.stepping import EngineOptions, Job, StepEngine
from tests.support.tiny_images import CALL_DEFAULTS, create_pipeline

TOLERANCE = 1e-5
"""Largest difference of a pixel in [0, 1] from the stock pipeline's, in float32."""

WAIT_S = 60.0


def create_inputs(seed: int, *, kind: str = "sd", steps: int = 4, **more: Any) -> dict[str, Any]:
    """Returns a request whose generator is made when it is run, so that it can be run twice."""
    return {
        "prompt": f"a lighthouse {seed} in the fog",
        "num_inference_steps": steps,
        "height": 32,
        "width": 32,
        "output_type": "pt",
        "generator": lambda: torch.Generator().manual_seed(seed),
        **CALL_DEFAULTS.get(kind, {}),
        **more,
    }


def run_stock(pipeline: Any, inputs: dict[str, Any], scheduler: Any = None) -> Any:
    """Returns the images of the stock pipeline run alone, with a scheduler of its own."""
    before = pipeline.scheduler
    pipeline.scheduler = copy.deepcopy(scheduler or before)
    pipeline.set_progress_bar_config(disable=True)
    made = {name: value() if callable(value) else value for name, value in inputs.items()}
    try:
        return pipeline(**made).images
    finally:
        pipeline.scheduler = before


def difference(job: Job, expected: Any) -> float:
    """Returns the largest difference of a pixel between a job's images and the expected ones."""
    images = job.result(WAIT_S).images
    assert images.shape == expected.shape
    return float((images - expected).abs().max())


@contextmanager
def engine_of(pipeline: Any, *, mode: Any = "auto", **options: Any) -> Iterator[StepEngine]:
    """An engine with one pipeline named `p`."""
    with StepEngine(EngineOptions(**options)) as engine:
        engine.add_pipeline("p", pipeline, mode=mode)
        yield engine


def create_pair(kind: str = "sd") -> tuple[Any, Any]:
    """Returns two pipelines of equal weights: one for the engine, one to compare with."""
    return create_pipeline(kind), create_pipeline(kind)


def before_forward(module: Any, check: Callable[[Any], None]) -> None:
    """Calls `check(sample)` before each forward of a UNet."""
    module.register_forward_pre_hook(
        lambda _, args, kwargs: check(args[0] if args else kwargs["sample"]), with_kwargs=True
    )
