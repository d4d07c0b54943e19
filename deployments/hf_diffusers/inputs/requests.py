"""A request's inputs become the arguments of a stock pipeline's call, or an error that says why.

Applies the limits of the settings and of the pipelines; runs nothing.
"""

from __future__ import annotations

import functools
import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image

from deployments.hf_diffusers.config import DiffusersSettings
from deployments.hf_diffusers.inputs.fields import Fields, read_fields
from deployments.hf_diffusers.inputs.image_inputs import (
    choose_pipeline,
    default_size,
    place_input_images,
    read_input_images,
)
from deployments.hf_diffusers.inputs.prompts import PromptCounter
from deployments.hf_diffusers.pipelines.info import IMAGE_TO_IMAGE, TEXT_TO_IMAGE, PipelineInfo
from deployments.hf_diffusers.pipelines.schedulers import Schedulers
from deployments.hf_diffusers.stepping import JobOptions
from truthgpt_serve.errors import RequestError, UnsupportedError, failed_adapter
from truthgpt_serve.request_schema import check_at_most
from truthgpt_serve.wording import shown, suggest

MAX_DRAWN_SEED = 2**32
QUALITY_FACTORS = {
    "auto": 1.0,
    "low": 0.5,
    "medium": 1.0,
    "standard": 1.0,
    "high": 1.5,
    "hd": 1.5,
    "xhigh": 2.0,
    "max": 2.0,
}
"""Steps of each of OpenAI's qualities in terms of the default, unless the settings list them."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What the loaded model offers to requests.

    Attributes:
        info: By the name of a pipeline.
        settings: Limits and defaults.
        counter: Counts prompts.
        schedulers: Makes schedulers by name.
        adapters: Names of the LoRA adapters.
        failed_adapters: Why each adapter that could not be loaded could not, by name.
        checks_images: Whether a safety checker judges the finished images.
    """

    info: Mapping[str, PipelineInfo]
    settings: DiffusersSettings
    counter: PromptCounter
    schedulers: Schedulers
    adapters: tuple[str, ...] = ()
    failed_adapters: Mapping[str, str] = field(default_factory=dict)
    checks_images: bool = False


@dataclass(frozen=True, slots=True)
class ImageCall:
    """One image to be made.

    Attributes:
        pipeline: Its name.
        arguments: Keyword arguments of its call.
        seed: Seed of the image, given or drawn.
        options: How it is made: `num_steps` are those that will run, `adapters` as clients call
            them.
        input_tokens: Tokens of the prompts, or None if the pipeline has no tokenizer.
    """

    pipeline: str
    arguments: dict[str, Any]
    seed: int
    options: JobOptions
    input_tokens: int | None = None


def plan_call(inputs: Mapping[str, Any], capabilities: Capabilities) -> ImageCall:
    """Checks a request's inputs and returns the call for them; may take tens of milliseconds.

    Args:
        inputs: See docs/images.md; a value of None counts as not given.
        capabilities: What the model offers.

    Raises:
        RequestError: An input is wrong; the message names it, the limit and what would do.
    """
    fields = read_fields(inputs)
    input_images = read_input_images(fields, capabilities.info)
    info = capabilities.info[choose_pipeline(input_images, capabilities.info)]
    arguments: dict[str, Any] = dict(info.fixed)
    steps = _steps(fields, capabilities.settings, info)
    num_steps = _strength(fields, info, steps, capabilities.settings.max_steps, arguments)
    _guidance(fields, info, capabilities.settings, arguments)
    tokens = _prompts(fields, info, capabilities, arguments)
    place_input_images(fields, input_images, info, capabilities.settings, arguments)
    seed = secrets.randbelow(MAX_DRAWN_SEED) if fields.seed is None else fields.seed
    scheduler = capabilities.schedulers.make(fields.scheduler, steps) if fields.scheduler else None
    call = ImageCall(
        pipeline=info.name,
        arguments=arguments,
        seed=seed,
        options=JobOptions(
            num_steps=num_steps,
            scheduler=scheduler,
            adapters=_adapters(fields, capabilities),
            partial_images=_partial_images(fields, capabilities),
        ),
        input_tokens=tokens,
    )
    if info.takes("num_inference_steps"):
        arguments["num_inference_steps"] = steps
    arguments["generator"] = functools.partial(make_generator, seed)
    arguments["output_type"] = "pt"
    return call


def make_generator(seed: int) -> torch.Generator:
    """Returns an image's random generator: on the CPU, so that every device draws the same."""
    return torch.Generator("cpu").manual_seed(seed)


def expected_work(inputs: Mapping[str, Any], capabilities: Capabilities) -> tuple[int, int]:
    """Returns about how many steps and pixels an image takes; looks at no image's content.

    Raises:
        RequestError: An input is wrong.
    """
    settings, given = capabilities.settings, inputs.get("image")
    name = TEXT_TO_IMAGE if given is None else IMAGE_TO_IMAGE
    info = capabilities.info.get(name) or next(iter(capabilities.info.values()))
    names = ("steps", "quality", "width", "height")
    fields = read_fields({key: inputs[key] for key in names if key in inputs})
    width, height = default_size(info, settings)
    images = given if isinstance(given, list) else [given]
    if images and isinstance(images[0], Image.Image):
        width, height = images[0].size
    num_pixels = (fields.width or width) * (fields.height or height)
    return _steps(fields, settings, info), min(num_pixels, settings.max_pixels)


def _steps(fields: Fields, settings: DiffusersSettings, info: PipelineInfo) -> int:
    check_at_most("steps", fields.steps, settings.max_steps)
    quality, steps = fields.quality, fields.steps
    default = settings.default_steps or info.defaults.get("num_inference_steps") or 50
    default = min(int(default), settings.max_steps)
    if quality:
        scaled = {name: math.ceil(default * factor) for name, factor in QUALITY_FACTORS.items()}
        known = {**scaled, **settings.quality_steps}
        if quality not in known:
            message = f"there is no quality {shown(quality)} ({suggest(quality, known)})"
            raise RequestError(message, param="quality")
        default = min(known[quality], settings.max_steps)
    return default if steps is None else steps


def _strength(
    fields: Fields, info: PipelineInfo, steps: int, max_steps: int, arguments: dict[str, Any]
) -> int:
    """Returns the steps that run: with a strength below 1 the first ones are left out."""
    strength = fields.strength
    if not info.starts_from_image:
        if strength is not None:
            message = f"`strength` has no effect for {info.name} with this model"
            raise UnsupportedError(message, param="strength")
        return steps
    if strength is not None:
        arguments["strength"] = strength
    effective = float(info.defaults["strength"] if strength is None else strength)
    num_steps = min(int(steps * effective), steps)
    if num_steps < 1:
        least = 1 / effective  # infinite for the smallest numbers
        enough = f"at least {math.ceil(least)} steps, or " if least <= max_steps else ""
        message = (
            f"`strength` {effective:g} of {steps} steps leaves none: use {enough}more strength"
        )
        raise RequestError(message, param="strength")
    return num_steps


def _guidance(
    fields: Fields, info: PipelineInfo, settings: DiffusersSettings, arguments: dict[str, Any]
) -> None:
    check_at_most("guidance_scale", fields.guidance_scale, settings.max_guidance_scale)
    guidance, negative = fields.guidance_scale, fields.negative_prompt or None
    if guidance is not None and info.guidance is None:
        message = "`guidance_scale` has no effect with this model: its guidance is distilled"
        raise UnsupportedError(message, param="guidance_scale")
    if guidance is None:
        guidance = settings.default_guidance_scale
    if info.guidance is not None and guidance is not None:
        arguments[info.guidance] = guidance
        if info.negative_needed and guidance > 1 and negative is None:
            arguments["negative_prompt"] = " "  # without one these pipelines do not guide at all
    if negative is None:
        return
    if info.no_negative:
        message = f"`negative_prompt` has no effect with this model: {info.no_negative}"
        raise UnsupportedError(message, param="negative_prompt")
    used = info.defaults.get(info.guidance or "") if guidance is None else guidance
    if isinstance(used, (int, float)) and used <= 1:
        message = f"`negative_prompt` has no effect at guidance_scale {used:g}: raise it above 1"
        raise RequestError(message, param="negative_prompt")
    arguments["negative_prompt"] = negative


def _prompts(
    fields: Fields, info: PipelineInfo, capabilities: Capabilities, arguments: dict[str, Any]
) -> int | None:
    """Adds the prompt; returns the tokens of it and of the negative prompt."""
    prompt = fields.prompt
    if prompt is None:
        if TEXT_TO_IMAGE in info.name:
            raise RequestError("`prompt` is required", param="prompt")
        prompt = ""
    tokens = capabilities.counter.check(prompt, "prompt")
    negative = arguments.get("negative_prompt")
    if tokens is not None and negative:
        tokens += capabilities.counter.check(negative, "negative_prompt") or 0
    if info.takes("prompt"):
        arguments["prompt"] = prompt
    limit = capabilities.settings.max_prompt_tokens
    if limit is not None and info.takes("max_sequence_length"):
        arguments["max_sequence_length"] = limit
    return tokens


def _adapters(fields: Fields, capabilities: Capabilities) -> dict[str, float]:
    known = capabilities.adapters
    for name in fields.adapters:
        if name in capabilities.failed_adapters:
            raise failed_adapter(name, capabilities.failed_adapters[name])
        if name not in known:
            message = f"there is no adapter {shown(name)} ({suggest(name, known)})"
            raise RequestError(message, param="adapters")
    return {name: weight for name, weight in fields.adapters.items() if weight}


def _partial_images(fields: Fields, capabilities: Capabilities) -> int:
    number = fields.partial_images
    message = ""
    if not capabilities.settings.previews:
        message = "this model gives no partial images"
    elif capabilities.checks_images:  # else a client would see what is then refused
        message = "this model gives no partial images: its safety checker judges finished ones"
    if number and message:
        raise UnsupportedError(message, param="partial_images")
    return number
