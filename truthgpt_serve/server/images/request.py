"""OpenAI's image requests, JSON and forms, read and checked field by field.

Knows nothing of image libraries, models or servers. Names and limits are those of OpenAI's API
reference; fields beyond it are `_PASSED`, `seed` and `progress`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from truthgpt_serve.config.images import ImagesSection
from truthgpt_serve.errors import TooLargeError
from truthgpt_serve.http.json_body import bad_field, parse_model
from truthgpt_serve.http.multipart import Part
from truthgpt_serve.server.images.fields import (
    Adapters,
    Choice,
    Flag,
    Kind,
    Number,
    Size,
    Text,
    Whole,
)
from truthgpt_serve.server.images.files import OutputFormat
from truthgpt_serve.server.images.forms import read_form
from truthgpt_serve.server.images.refusals import refuse_field, refuse_file, refuse_words

Operation = Literal["generation", "edit", "variation"]
ROUTES: dict[Operation, str] = {
    "generation": "/v1/images/generations",
    "edit": "/v1/images/edits",
    "variation": "/v1/images/variations",
}
FILES: dict[Operation, tuple[str, ...]] = {
    "generation": (),
    "edit": ("image", "mask"),
    "variation": ("image",),
}
QUALITIES = ("low", "medium", "high", "xhigh", "max", "auto", "standard", "hd")
MAX_SEED = 2**53 - 1
"""The largest whole number that every JSON reader keeps exactly."""
MAX_STEPS = 1000
"""Denoising steps: that many timesteps are what diffusion models are trained with."""
MAX_PARTIAL_IMAGES = 3
MAX_CONTROL_SCALE = 2
MAX_USER_CHARS = 1000
MAX_SCHEDULER_CHARS = 100


@dataclass(slots=True)
class ImageRequest:
    """A request for images, checked.

    Attributes:
        model: The model name of the request.
        operation: Which route it came to.
        n: How many images.
        seed: The first image's seed, or None.
        url: Whether the answer names addresses instead of holding the images.
        output: How images are written.
        stream: Whether the answer comes as server-sent events.
        partial_images: How many unfinished images a stream shows of each.
        progress: Whether a stream tells step and place in queue.
        background: As it came, or `auto`.
        quality: As it came, or `auto`.
        inputs: What else the model's class gets, `prompt` always.
        images: Uploaded files.
        mask: The uploaded mask, or None.
    """

    model: str
    operation: Operation
    n: int = 1
    seed: int | None = None
    url: bool = False
    output: OutputFormat = field(default_factory=OutputFormat)
    stream: bool = False
    partial_images: int = 0
    progress: bool = False
    background: str = "auto"
    quality: str = "auto"
    inputs: dict[str, Any] = field(default_factory=dict)
    images: list[bytes] = field(default_factory=list)
    mask: bytes | None = None


class ImageParser:
    """Reads image requests for one model.

    Args:
        limits: `serving.images`.
        adapters: The adapters that the model has, or None when only its class knows.
    """

    def __init__(self, limits: ImagesSection, adapters: Collection[str] | None) -> None:
        self._max_input_images = limits.max_input_images
        prompt = Text(limits.max_prompt_chars)
        common: dict[str, Kind] = {
            "n": Whole(1, limits.max_images),
            "size": Size(limits.max_pixels),
            "response_format": Choice(("b64_json", "url")),
            "output_format": Choice(("png", "jpeg", "webp")),
            "output_compression": Whole(0, 100),
            "quality": Choice(QUALITIES),
            "background": Choice(("auto", "opaque", "transparent")),
            "moderation": Choice(("auto", "low")),
            "user": Text(MAX_USER_CHARS, may_be_empty=True),
            "safety_identifier": Text(MAX_USER_CHARS, may_be_empty=True),
            "prompt": prompt,
            "negative_prompt": Text(limits.max_prompt_chars, may_be_empty=True),
            "steps": Whole(1, MAX_STEPS),
            "guidance_scale": Number(0, 100),
            "seed": Whole(0, MAX_SEED),
            "scheduler": Text(MAX_SCHEDULER_CHARS),
            "adapters": Adapters(adapters),
        }
        streamed: dict[str, Kind] = {
            "stream": Flag(),
            "partial_images": Whole(0, MAX_PARTIAL_IMAGES),
            "progress": Flag(),
        }
        changing: dict[str, Kind] = {"strength": Number(0, 1, open_low=True)}
        self._fields: dict[Operation, dict[str, Kind]] = {
            "generation": {**common, **streamed, "style": Choice(("vivid", "natural"))},
            "edit": {
                **common,
                **streamed,
                **changing,
                "control_scale": Number(0, MAX_CONTROL_SCALE),
                "input_fidelity": Choice(("low", "high")),
            },
            "variation": {**common, **changing},
        }

    def parse_json(self, body: Mapping[str, Any]) -> ImageRequest:
        """Checks a body of `POST /v1/images/generations`.

        Raises:
            RequestError: A field is missing, wrong or unknown; `param` names it.
            UnsupportedError: A field asks for what this server does not have.
        """
        request = ImageRequest(parse_model(body), "generation")
        self._fill(request, body)
        return request

    def parse_form(self, operation: Operation, parts: list[Part]) -> ImageRequest:
        """Checks the parts of a form for edits or variations; errors as in `parse_json`.

        Raises:
            TooLargeError: It has too many images.
        """
        body, files = read_form(parts, self._fields[operation])
        request = ImageRequest(parse_model(body), operation)
        self._take_files(request, files)
        self._fill(request, body)
        return request

    def _take_files(self, request: ImageRequest, files: dict[str, list[bytes]]) -> None:
        most = self._max_input_images if request.operation == "edit" else 1
        for name in files:
            refuse_file(name)
            if name not in FILES[request.operation]:
                raise bad_field(name[:80], f"is no file that {ROUTES[request.operation]} takes")
        request.images = files.get("image", [])
        masks = files.get("mask", [])
        if not request.images:
            raise bad_field("image", "is required: send a PNG, JPEG or WebP file")
        if len(request.images) > most:
            raise TooLargeError(
                f"`image` holds {len(request.images)} images; at most {most} "
                f"{'is' if most == 1 else 'are'} allowed",
                param="image",
                code="too_many_images",
            )
        if len(masks) > 1:
            raise bad_field("mask", "is given more than once")
        request.mask = masks[0] if masks else None

    # -- fields

    def _fill(self, request: ImageRequest, body: Mapping[str, Any]) -> None:
        fields = self._fields[request.operation]
        values: dict[str, Any] = {}
        for name, value in body.items():
            kind = fields.get(name)
            if kind is not None and value is not None:
                values[name] = kind.check(name, value)
            elif kind is None and name != "model":
                names = [*fields, "model", *FILES[request.operation]]
                refuse_field(name, value, ROUTES[request.operation], names)
        if "prompt" not in values and request.operation != "variation":
            raise bad_field("prompt", "is required")
        refuse_words(values)
        _check_together(values)
        _take(request, values)


def _check_together(values: Mapping[str, Any]) -> None:
    """Refuses fields that contradict each other."""
    output_format = values.get("output_format", "png")
    compression = values.get("output_compression")
    if output_format == "png" and compression not in (None, 100):
        raise bad_field(
            "output_compression",
            f"is {compression}, but png has no compression that loses anything; "
            "set `output_format` to jpeg or webp",
        )
    if values.get("stream"):
        if values.get("response_format") == "url":
            raise bad_field("response_format", "is 'url', but a stream brings the images as base64")
    else:
        for name in ("partial_images", "progress"):
            if values.get(name):
                raise bad_field(name, "is only allowed when `stream` is true")
    seed, n = values.get("seed", 0), values.get("n", 1)
    if seed + n - 1 > MAX_SEED:
        raise bad_field(
            "seed", f"is {seed}: with {n} images the last one's seed would be above {MAX_SEED}"
        )


def _take(request: ImageRequest, values: Mapping[str, Any]) -> None:
    """Puts the checked values where they belong."""
    request.n = values.get("n", 1)
    request.seed = values.get("seed")
    request.url = values.get("response_format") == "url"
    request.stream = values.get("stream", False)
    request.partial_images = values.get("partial_images", 0)
    request.progress = values.get("progress", False)
    request.background = values.get("background", "auto")
    request.quality = values.get("quality", "auto")
    request.output = OutputFormat(
        values.get("output_format", "png"),
        values.get("output_compression", 100),
        opaque=request.background == "opaque",
    )
    inputs = request.inputs
    inputs["prompt"] = values.get("prompt", "")
    inputs.update({name: values[name] for name in _PASSED if name in values})
    if request.quality != "auto":
        inputs["quality"] = request.quality
    if values.get("size") is not None:
        inputs["width"], inputs["height"] = values["size"]
    if request.operation != "generation":
        inputs["operation"] = request.operation
    if request.partial_images:
        inputs["partial_images"] = request.partial_images


_PASSED = (
    "steps",
    "guidance_scale",
    "negative_prompt",
    "scheduler",
    "adapters",
    "strength",
    "control_scale",
)
"""Fields beyond OpenAI that the class gets under their own names; `seed` differs by image."""
