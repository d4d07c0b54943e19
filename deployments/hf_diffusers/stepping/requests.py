"""Turns what is submitted into a scheduled job, and says what is wrong with it."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Mapping
from typing import Any

from deployments.hf_diffusers.stepping.errors import UnknownAdapterError
from deployments.hf_diffusers.stepping.job import Job, JobOptions, check_num_steps
from deployments.hf_diffusers.stepping.pipelines.adapters import Adapters
from deployments.hf_diffusers.stepping.pipelines.added import PipelineEntry
from deployments.hf_diffusers.stepping.scheduling.cost_model import CostKey, CostModel
from deployments.hf_diffusers.stepping.scheduling.scheduled_job import ScheduledJob

DEFAULT_NUM_STEPS = 50
CALLBACKS = ("callback_on_step_end", "callback")
ATTENTION_ARGUMENTS = (
    "cross_attention_kwargs",
    "joint_attention_kwargs",
    "attention_kwargs",
)


def create_scheduled_job(
    entry: PipelineEntry,
    inputs: Mapping[str, Any],
    costs: CostModel,
    options: JobOptions,
) -> ScheduledJob:
    """Checks a request and estimates its work.

    Raises:
        UnknownAdapterError: The pipeline was not added with one of the adapters.
        ValueError: A callback among the inputs, or a number of steps that is none.
    """
    for name in CALLBACKS:
        if inputs.get(name) is not None:
            raise ValueError(f"inputs[{name!r}]: use `on_event` instead, which gets every step")
    given = _num_steps(entry, inputs)
    steps = options.num_steps or given
    images = _num_images(inputs)
    key = CostKey(entry.name, _size(inputs))
    now = time.monotonic()
    return ScheduledJob(
        job=Job(entry.name, steps),
        entry=entry,
        inputs=dict(inputs),
        scheduler=options.scheduler,
        adapters=_adapters(entry, options.adapters),
        submitted_at=now,
        deadline=math.inf if options.deadline_s is None else now + options.deadline_s,
        num_steps=steps,
        num_images=images,
        cost_key=key,
        step_cost=costs.estimate(key) * images,
        partial_images=options.partial_images,
        on_event=options.on_event,
        exclusive=entry.mode == "exclusive" or _scales_lora(entry, inputs),
    )


def _adapters(entry: PipelineEntry, adapters: Mapping[str, float]) -> Adapters:
    unknown = sorted(adapters.keys() - entry.adapters)
    if unknown:
        raise UnknownAdapterError(
            f"pipeline {entry.name!r} has no adapter {unknown}: it has {sorted(entry.adapters)}"
        )
    return tuple((name, float(weight)) for name, weight in adapters.items())


def _num_steps(entry: PipelineEntry, inputs: Mapping[str, Any]) -> int:
    value = inputs.get("num_inference_steps")
    if value is not None:
        return check_num_steps("inputs['num_inference_steps']", value)
    parameters = inspect.signature(type(entry.pipeline).__call__).parameters
    default = getattr(parameters.get("num_inference_steps"), "default", None)
    return default if isinstance(default, int) and default > 0 else DEFAULT_NUM_STEPS


def _num_images(inputs: Mapping[str, Any]) -> int:
    prompt = inputs.get("prompt")
    num_prompts = len(prompt) if isinstance(prompt, (list, tuple)) else 1
    per_prompt = inputs.get("num_images_per_prompt")
    return max(num_prompts, 1) * (per_prompt if isinstance(per_prompt, int) else 1)


def _size(inputs: Mapping[str, Any]) -> tuple[int, int] | None:
    """Returns height and width in pixels: as asked for, else those of the image to work from."""
    height, width = inputs.get("height"), inputs.get("width")
    if isinstance(height, int) and isinstance(width, int):
        return height, width
    image = inputs.get("image")
    image = image[0] if isinstance(image, (list, tuple)) and image else image
    size = getattr(image, "size", None)  # of a PIL image: (width, height)
    if isinstance(size, tuple) and len(size) == 2:
        return int(size[1]), int(size[0])
    return None


def _scales_lora(entry: PipelineEntry, inputs: Mapping[str, Any]) -> bool:
    """Whether the pipeline will scale the LoRA layers of its shared modules during the call."""
    kwargs = [inputs[name] for name in ATTENTION_ARGUMENTS if isinstance(inputs.get(name), Mapping)]
    return entry.has_lora and any(item.get("scale", 1.0) != 1.0 for item in kwargs)
