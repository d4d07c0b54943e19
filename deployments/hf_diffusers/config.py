"""The image family's entry in the registry and its settings.

Imports neither torch nor diffusers, so a Serve file is validated without them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from deployments.hf_diffusers.checks import check_config
from deployments.hf_diffusers.choices import SCHEDULERS, scheduler_class
from truthgpt_serve.config.base import (
    Count,
    NonNegativeNumber,
    PositiveNumber,
    Refusal,
    Section,
    Text,
    refuse,
)
from truthgpt_serve.contract import FamilySpec
from truthgpt_serve.request_fields import MAX_GUIDANCE_SCALE
from truthgpt_serve.wording import suggest

SIZE_PATTERN = r"^[1-9]\d{0,4}x[1-9]\d{0,4}$"
SIZE_STEP = 8
"""Every pipeline's edges are multiples of this; many need a larger one, known after loading."""
MAX_ONGOING_REQUESTS = 32


class DiffusersSettings(Section):
    """What `serving.engine` may say for `family: hf-diffusers`."""

    pipeline: Text | None = None
    """Diffusers class of the pipeline, such as `StableDiffusionXLPipeline`. Needed for weights in a
    single file; a folder or hub model says it itself."""

    variant: Text | None = None
    """Variant of the weight files, such as `fp16` for `*.fp16.safetensors`; null for the plain
    ones."""

    vae: Text | None = None
    """Hub name or local folder of another VAE, such as one that is safe in float16."""

    controlnet: Text | None = None
    """Hub name or local folder of a ControlNet. Requests with a control image then use it; all
    others run as without it."""

    textual_inversion: list[Text] = Field(default_factory=list)
    """Learned words: hub names, local folders or `.safetensors` files. A prompt uses a word by its
    name, such as `<toy>`."""

    gguf_file: Text | None = None
    """Local GGUF file with the denoiser's quantized weights, for `model_optim.quantization:
    gguf`."""

    safety_checker: bool = True
    """Use the checkpoint's own safety checker where it has one; an image that it refuses is
    answered 400, and there are no partial images, which it does not see. False leaves it out."""

    default_steps: Count | None = None
    """Denoising steps when a request says neither `steps` nor `quality`; null takes the pipeline's
    own default. More is slower and, up to a point, finer."""

    max_steps: Count = 150
    """Most denoising steps of a request. More lets one request take longer."""

    quality_steps: dict[str, Count] = Field(default_factory=dict)
    """Denoising steps of each value of `quality`, such as `{low: 12, high: 50}`. Of those not
    listed, `low` means half the default, `high` and `hd` 1.5 times, `xhigh` and `max` twice."""

    default_size: Annotated[str, Field(pattern=SIZE_PATTERN)] | None = None
    """Width and height in pixels, such as `1024x1024`, when a request names none; null takes what
    the model was trained at."""

    min_edge: Count | None = None
    """Least width and height in pixels; null means 64, or what the model was trained at if less."""

    max_edge: Count = 4096
    """Largest width and height in pixels. Memory grows with the product of the two."""

    max_pixels: Count = 2 * 1024 * 1024
    """Most pixels of an image. More lets one request take more memory and time."""

    default_guidance_scale: NonNegativeNumber | None = None
    """Guidance when a request names none; null takes the pipeline's own default."""

    max_guidance_scale: PositiveNumber = MAX_GUIDANCE_SCALE
    """Largest guidance of a request; none may have more than 100."""

    max_prompt_tokens: Count | None = None
    """Tokens of a prompt that the text encoder reads, where the pipeline leaves it open; null takes
    the pipeline's own default. More costs memory and time in every step. CLIP's 77 are fixed."""

    schedulers: list[str] | None = None
    """Schedulers that requests may name; null allows every one that fits the pipeline."""

    max_rows: Count = 16
    """Most rows of one batched forward; with guidance an image has two. More helps small images on
    a large GPU until it is full, and takes more memory."""

    profile_rows: bool | None = None
    """Measure at start, for each size, from which batch on a forward gains nothing, and never batch
    more. Null means on a GPU only: on a CPU the batch does not matter much."""

    row_caps_file: Text | None = None
    """File in which the measurements are kept for the next start; null keeps none."""

    batch_buckets: list[Count] = Field(default_factory=list)
    """Batch sizes that forwards are padded to, ascending, so that compiled code meets few shapes.
    Empty means 1, 2, 4, ... `max_rows` with `model_optim.compile`, else no padding."""

    channels_last: bool = False
    """Lay convolutions out channels last: faster on tensor cores, for UNets and VAEs."""

    vae_tiling: bool = False
    """Decode large images in tiles: less memory, faint seams are possible."""

    vae_slicing: bool = False
    """Decode the images of a batch one after the other: less memory, a little slower."""

    offload: Literal["none", "model", "group"] = "none"
    """Keep weights in CPU memory and bring each model (`model`) or layer (`group`) to the GPU when
    it computes: much less GPU memory. Requests then run one after the other."""

    step_cache: Literal["first_block", "taylorseer"] | None = None
    """Latency mode: reuse results between denoising steps, which is faster for one request and
    changes the image slightly. Requests then run one after the other."""

    step_cache_threshold: PositiveNumber = 0.05
    """For `first_block`: the relative change of the first block below which the others are skipped.
    More is faster and further from the exact image."""

    previews: bool = True
    """Allow `partial_images` in streams; each costs one VAE decoding."""

    @model_validator(mode="after")
    def _check_values(self) -> DiffusersSettings:
        found = [*self._steps_faults(), *self._size_faults(), *self._name_faults()]
        if self.batch_buckets != sorted(set(self.batch_buckets)):
            fix = f"write {sorted(set(self.batch_buckets))}"
            found.append(Refusal("batch_buckets", "must be ascending, each size once", fix))
        if found:
            raise refuse(found)
        return self

    def _steps_faults(self) -> list[Refusal]:
        steps = {f"quality_steps.{name}": value for name, value in self.quality_steps.items()}
        if self.default_steps is not None:
            steps["default_steps"] = self.default_steps
        return [
            Refusal(key, f"{value} is more than max_steps, which is {self.max_steps}", "lower it")
            for key, value in steps.items()
            if value > self.max_steps
        ]

    def _size_faults(self) -> list[Refusal]:
        if self.min_edge is not None and self.min_edge > self.max_edge:
            message = f"{self.min_edge} is more than max_edge, which is {self.max_edge}"
            return [Refusal("min_edge", message, "lower it", ("max_edge",))]
        if self.default_size is None:
            return []
        width, height = parse_size(self.default_size)
        message = ""
        if width % SIZE_STEP or height % SIZE_STEP:
            message = f"{self.default_size} is not in multiples of {SIZE_STEP}"
        elif not (self.min_edge or 1) <= min(width, height) <= max(width, height) <= self.max_edge:
            message = f"{self.default_size} is not between min_edge and max_edge, {self.max_edge}"
        elif width * height > self.max_pixels:
            message = f"{self.default_size} has more pixels than max_pixels, {self.max_pixels}"
        return [Refusal("default_size", message, "change one of them")] if message else []

    def _name_faults(self) -> list[Refusal]:
        return [
            Refusal("schedulers", f"there is no scheduler {name!r}", suggest(name, SCHEDULERS))
            for name in self.schedulers or ()
            if scheduler_class(name) is None
        ]


def parse_size(size: str) -> tuple[int, int]:
    """Returns width and height of a size such as `512x768`."""
    width, _, height = size.partition("x")
    return int(width), int(height)


def default_ongoing_requests(cfg: Mapping[str, Any]) -> int:
    """Returns how many requests one replica takes.

    Each holds its latents in the device's memory, while `max_rows` bounds the rows of one forward.
    Where requests run one after the other, more would only wait.
    """
    engine = cfg["serving"]["engine"]
    if engine.get("offload", "none") != "none" or engine.get("step_cache") is not None:
        return MAX_ONGOING_REQUESTS // 4
    return MAX_ONGOING_REQUESTS


FAMILY = FamilySpec(
    name="hf-diffusers",
    class_path="deployments.hf_diffusers.deployment:DiffusersModel",
    tasks=("image-generation",),
    engine_config=DiffusersSettings,
    takes_adapters=True,
    adds_adapters=True,
    needs_weights=True,
    on_event_loop=True,
    max_ongoing_requests=default_ongoing_requests,
    check=check_config,
    doctor_path="deployments.hf_diffusers.doctor:examine",
)
