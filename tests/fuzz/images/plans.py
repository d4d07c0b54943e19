"""Draws the random requests and turns each into a stock pipeline's arguments.

Does not know the engine: a plan is plain values, so that it can be printed and run again.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from PIL import Image

ADAPTERS = ("first", "second")
"""The names of the adapters that the pipelines of a run are given."""

# As Stable Diffusion is published. With its own default of clipping, the first step divides the
# denoiser's float32 rounding by the root of a tiny alpha and keeps it: the stock pipeline is then
# itself up to 2.5e-4 away from what it makes in float64, and otherwise within 2e-6.
_DDIM = {"clip_sample": False, "set_alpha_to_one": False}

_BETA_SCHEDULERS: Sequence[tuple[str, Mapping[str, Any]]] = (
    ("EulerDiscreteScheduler", {}),
    ("EulerAncestralDiscreteScheduler", {}),
    ("DDIMScheduler", _DDIM),
    # With its first four steps done in the other way it needs four or more.
    ("PNDMScheduler", {"skip_prk_steps": True}),
    ("DPMSolverMultistepScheduler", {}),
    ("UniPCMultistepScheduler", {}),
    ("HeunDiscreteScheduler", {}),
    ("LCMScheduler", {}),
)

SCHEDULERS: Mapping[str, Sequence[tuple[str, Mapping[str, Any]]]] = MappingProxyType(
    {
        "sd": _BETA_SCHEDULERS,
        "sdxl": _BETA_SCHEDULERS,
        "sd3": [
            ("FlowMatchEulerDiscreteScheduler", {"shift": 1.5}),
            ("FlowMatchHeunDiscreteScheduler", {}),
        ],
        "flux": [("FlowMatchEulerDiscreteScheduler", {"max_shift": 0.8})],
        "flux2": [("FlowMatchEulerDiscreteScheduler", {"max_shift": 0.8})],
        "qwen": [("FlowMatchEulerDiscreteScheduler", {"max_shift": 0.5})],
        "zimage": [("FlowMatchEulerDiscreteScheduler", {"shift": 1.5})],
        "sana": [
            ("FlowMatchEulerDiscreteScheduler", {"shift": 2.0}),
            ("DPMSolverMultistepScheduler", {"solver_order": 1}),
        ],
        "pixart": [
            ("EulerDiscreteScheduler", {}),
            ("UniPCMultistepScheduler", {}),
            ("DDIMScheduler", _DDIM),
        ],
    }
)
"""Schedulers that a kind is tried with beside its own, each with changes to its configuration."""

GUIDANCE: Mapping[str, tuple[str, Sequence[float]]] = MappingProxyType(
    {
        # True guidance, with a second pass for the negative prompt, beside the distilled one.
        "flux": ("true_cfg_scale", (1.0, 1.0, 2.0, 4.0)),
        "qwen": ("true_cfg_scale", (1.0, 2.0, 4.0)),
        "zimage": ("guidance_scale", (0.0, 1.0, 3.0, 5.0)),
    }
)
"""How a kind calls classifier-free guidance and its values; the lowest is without."""

_PROMPT = (
    "a red fox in the snow at night oil painting of an old castle by the sea golden light robot "
    "astronaut riding horse portrait blurry low quality extra fingers galaxy neon city rain"
)


@dataclass(frozen=True)
class Plan:
    """One random request."""

    task: str
    """Which pipeline of the family: `text-to-image` or a variant."""
    arguments: Mapping[str, Any]
    """Plain arguments of the pipeline call."""
    size: tuple[int, int]
    """Width and height in pixels."""
    seeds: tuple[int, ...]
    """One for each image."""
    with_image: bool
    """Whether the call has an image to begin from, to follow or to refer to."""
    scheduler: tuple[str, Mapping[str, Any]] | None
    """None: the pipeline's own."""
    adapters: Mapping[str, float] = field(default_factory=dict)
    delay_s: float = 0.0
    """After the request before."""
    cancel_at_step: int | None = None
    """None: not cancelled."""


def base_kind(kind: str) -> str:
    """Returns the kind whose tables count for a version of it: `sdxl` for `sdxl-controlnet`."""
    return kind.partition("-")[0]


def draw_plan(generator: random.Random, kind: str, tasks: Sequence[str], *, adapters: bool) -> Plan:
    """Returns the next random request for a kind of tiny pipeline."""
    steps = generator.randint(2, 8)
    sizes = (32, 64) if kind == "sana" else (32, 48, 64)
    schedulers = SCHEDULERS[base_kind(kind)]
    scale, values = GUIDANCE.get(kind, ("guidance_scale", (1.0, 2.0, 5.0, 7.5)))
    arguments = {
        "prompt": _draw_text(generator, 1, 24),
        "num_inference_steps": steps,
        scale: generator.choice(values),
        "strength": round(generator.uniform(0.6, 1.0), 2),
        "controlnet_conditioning_scale": generator.choice((0.5, 1.0)),
    }
    if generator.random() < 0.6:
        arguments["negative_prompt"] = _draw_text(generator, 1, 12)
    if kind == "flux":
        arguments["guidance_scale"] = generator.choice((2.0, 3.5))
    if kind == "sd3" and generator.random() < 0.2:
        arguments |= {"skip_guidance_layers": [0], "skip_layer_guidance_stop": 0.8}
    names = generator.sample(ADAPTERS, generator.randint(0, 2)) if adapters else []
    task = generator.choice(tasks)
    needs_image = task != "text-to-image" or "controlnet" in kind
    num_images = 2 if generator.random() < 0.15 else 1
    if kind == "sd3" and needs_image:
        num_images = 1  # its stock pipeline encodes the one image once for each, and fails
    return Plan(
        task=task,
        arguments=arguments,
        size=(generator.choice(sizes), generator.choice(sizes)),
        seeds=tuple(generator.randrange(2**31) for _ in range(num_images)),
        with_image=needs_image or (base_kind(kind) == "flux2" and generator.random() < 0.3),
        scheduler=generator.choice(schedulers) if generator.random() < 0.5 else None,
        adapters={name: round(generator.uniform(0.2, 1.2), 2) for name in names},
        delay_s=generator.choice((0.0, 0.0, 0.0, 0.01, 0.04)),
        cancel_at_step=generator.randint(0, steps) if generator.random() < 0.1 else None,
    )


def _draw_text(generator: random.Random, least: int, most: int) -> str:
    return " ".join(generator.choices(_PROMPT.split(), k=generator.randint(least, most)))


def build_inputs(
    plan: Plan, pipeline: DiffusionPipeline, defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the arguments of the pipeline's call, with new random generators."""
    width, height = plan.size
    generators = [torch.Generator().manual_seed(seed) for seed in plan.seeds]
    inputs = {
        **defaults,
        **plan.arguments,
        "width": width,
        "height": height,
        "num_images_per_prompt": len(generators),
        "generator": generators if len(generators) > 1 else generators[0],
        "output_type": "pt",
    }
    if plan.with_image:
        # Flux2 refuses a reference image of less than 64 pixels a side.
        size = (64, 80) if plan.task == "text-to-image" else plan.size
        image = _draw_image(plan.seeds[0], *size)
        inputs |= {"image": image, "control_image": image, "mask_image": _draw_mask(width, height)}
    taken = inspect.signature(type(pipeline).__call__).parameters
    return {name: value for name, value in inputs.items() if name in taken}


def build_scheduler(plan: Plan, pipeline: DiffusionPipeline) -> Any:
    """Returns the plan's scheduler made from the configuration of the pipeline's own, or None."""
    if plan.scheduler is None:
        return None
    name, changes = plan.scheduler
    return getattr(diffusers, name).from_config(pipeline.scheduler.config, **changes)


def _draw_image(seed: int, width: int, height: int) -> Image.Image:
    noise = torch.randint(0, 256, (6, 6, 3), generator=torch.Generator().manual_seed(seed))
    small = Image.frombytes("RGB", (6, 6), bytes(noise.flatten().tolist()))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def _draw_mask(width: int, height: int) -> Image.Image:
    mask = Image.new("L", (width, height), 0)
    mask.paste(255, (width // 4, height // 4, width, 3 * height // 4))
    return mask
