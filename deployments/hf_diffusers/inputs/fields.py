"""The inputs of one request: their types and bounds, not what they mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from PIL import Image
from pydantic import Field

from truthgpt_serve.request_fields import (
    AdapterWeights,
    ControlScale,
    GuidanceScale,
    PartialImages,
    Seed,
    Steps,
    Strength,
)
from truthgpt_serve.request_schema import (
    Count,
    RequestModel,
    Via,
    read_request,
    refuse_unknown,
    wanted,
)


def _images(value: Any) -> list[Image.Image]:
    images = [] if value is None else list(value) if isinstance(value, list | tuple) else [value]
    if not all(isinstance(image, Image.Image) for image in images):
        raise wanted("an image")
    return images


_Images = Annotated[list[Image.Image], Via(Any, _images)]


class Fields(RequestModel):
    """The inputs of one request; see docs/images.md."""

    prompt: str | None = None
    negative_prompt: str | None = None
    operation: str | None = None
    quality: str | None = None
    scheduler: str | None = None
    width: Count | None = None
    height: Count | None = None
    steps: Steps | None = None
    guidance_scale: GuidanceScale | None = None
    seed: Seed | None = None
    strength: Strength | None = None
    control_scale: ControlScale | None = None
    partial_images: PartialImages = 0
    adapters: AdapterWeights = Field(default_factory=dict)
    image: _Images = Field(default_factory=list)
    mask: _Images = Field(default_factory=list)
    control_image: _Images = Field(default_factory=list)


def read_fields(inputs: Mapping[str, Any]) -> Fields:
    """Checks a request's inputs; one that is None counts as not given.

    Raises:
        RequestError: An input is wrong or unknown.
    """
    given = {name: value for name, value in inputs.items() if value is not None}
    refuse_unknown(given, Fields.model_fields)
    return read_request(Fields, given)
