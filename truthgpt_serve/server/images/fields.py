"""The fields of OpenAI's image requests, and what other servers call them.

Beyond OpenAI's are `seed`, `progress` and the fields that reach the class under their own names.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag

from truthgpt_serve.request_fields import (
    MAX_ADAPTERS,
    AdapterWeights,
    ControlScale,
    GuidanceScale,
    PartialImages,
    Seed,
    Steps,
    Strength,
)
from truthgpt_serve.request_schema import (
    WHOLE,
    Count,
    FullText,
    RequestModel,
    Via,
    bad_field,
    unsupported_unless,
    wanted,
)

_SIZE = re.compile(r"([1-9]\d{0,5})x([1-9]\d{0,5})")
MAX_NAME_CHARS = 128


def _size(value: Any) -> tuple[int, int] | None:
    if value == "auto":
        return None
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise wanted("WIDTHxHEIGHT in pixels, such as 1024x1024, or auto")
    return int(match[1]), int(match[2])


def _weights(adapters: Any) -> dict[str, float]:
    weights: dict[str, float] = dict.fromkeys(adapters, 1.0) | (
        adapters if isinstance(adapters, dict) else {}
    )
    for name in weights:
        if not 0 < len(name) <= MAX_NAME_CHARS:
            message = f"has a name of {len(name)} characters, not 1 to {MAX_NAME_CHARS}"
            raise bad_field("adapters", message)
    return weights


_Adapters = Annotated[
    Annotated[AdapterWeights, Tag("<weights>")]
    | Annotated[list[str], Field(max_length=MAX_ADAPTERS), Tag("<names>")],
    Discriminator(lambda value: "<names>" if isinstance(value, list) else "<weights>"),
]
_User = Annotated[str, Field(max_length=1000)]


class ImageFields(RequestModel):
    """What all three routes take."""

    model: FullText
    prompt: FullText
    n: Count = 1
    size: Annotated[tuple[int, int] | None, Via(Any, _size)] = None
    response_format: Literal["b64_json", "url"] = "b64_json"
    output_format: Literal["png", "jpeg", "webp"] = "png"
    output_compression: Annotated[int, Field(ge=0, le=100), WHOLE] = 100
    quality: Literal["low", "medium", "high", "xhigh", "max", "auto", "standard", "hd"] = "auto"
    background: Annotated[
        Literal["auto", "opaque", "transparent"],
        unsupported_unless(lambda value: value != "transparent", "makes opaque images"),
    ] = "auto"
    moderation: Literal["auto", "low"] = "auto"
    user: _User = ""
    safety_identifier: _User = ""
    negative_prompt: str | None = None
    steps: Steps | None = None
    guidance_scale: GuidanceScale | None = None
    seed: Seed | None = None
    scheduler: Annotated[FullText, Field(max_length=100)] | None = None
    adapters: Annotated[dict[str, float] | None, Via(_Adapters, _weights)] = None


class _Streamed(ImageFields):
    stream: bool = False
    partial_images: PartialImages = 0
    progress: bool = False


class GenerationFields(_Streamed):
    """Those of `POST /v1/images/generations`."""

    style: Literal["vivid", "natural"] | None = None


class EditFields(_Streamed):
    """Those of `POST /v1/images/edits`."""

    strength: Strength | None = None
    control_scale: ControlScale | None = None
    input_fidelity: Annotated[
        Literal["low", "high"],
        unsupported_unless(
            lambda value: value != "high",
            "has no fidelity setting; lower `strength` to change less",
        ),
    ] = "low"


class VariationFields(ImageFields):
    """Those of `POST /v1/images/variations`."""

    stream: ClassVar[bool] = False
    partial_images: ClassVar[int] = 0
    progress: ClassVar[bool] = False
    prompt: FullText = ""
    strength: Strength | None = None


OPENAI_ONLY = {
    "complexity": "has no planning",
    "frame_count": "makes no animations",
    "frame_duration_ms": "makes no animations",
    "markup": "takes no markup; paint on the image itself",
    "svg": "makes no SVG",
}
"""Fields of OpenAI's that only its own models honor, and why not."""

MEANT = {
    "width": "size",
    "height": "size",
    "num_inference_steps": "steps",
    "num_steps": "steps",
    "num_images": "n",
    "num_images_per_prompt": "n",
    "cfg_scale": "guidance_scale",
    "sampler": "scheduler",
    "lora": "adapters",
    "loras": "adapters",
    "format": "output_format",
    "image_url": "image",
    "images": "image",
    "denoising_strength": "strength",
}
"""Names that other servers have for fields."""

OF_EDITS = ("image", "mask", "strength", "control_scale", "input_fidelity")
"""Fields that a request for a generation does not have, but one for an edit."""
