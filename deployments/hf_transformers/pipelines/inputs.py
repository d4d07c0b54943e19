"""What each pipeline task takes: its input and the parameters that a request may give."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy
from PIL import Image
from pydantic import Field

from truthgpt_serve.errors import RequestError
from truthgpt_serve.request_schema import (
    WHOLE,
    FullText,
    RequestModel,
    Via,
    bad_field,
    read_request,
    refuse_unknown,
    wanted,
)


def _read_image(value: Any) -> Image.Image:
    if not isinstance(value, Image.Image):
        raise wanted("an image, as {b64_json, format}")
    return value.convert("RGB")


def _read_audio(value: Any) -> numpy.ndarray:
    """Returns a recording as float32 `[samples]`; unsigned numbers are silent in the middle."""
    if not isinstance(value, numpy.ndarray) or value.dtype.kind not in "fiu" or value.ndim != 1:
        raise bad_field("audio", "must be an array of one dimension, as {shape, dtype, b64}")
    if not value.size:
        raise bad_field("audio", "has no samples")
    if value.dtype.kind in "iu":
        middle = 0.0 if value.dtype.kind == "i" else (numpy.iinfo(value.dtype).max + 1.0) / 2
        value = (value - middle) / (middle or numpy.iinfo(value.dtype).max)
    samples: numpy.ndarray = value.astype(numpy.float32)
    if not numpy.isfinite(samples).all():
        raise bad_field("audio", "has samples that are not finite")
    return samples


Recording = Annotated[numpy.ndarray, Via(Any, _read_audio)]
Count = Annotated[int, Field(ge=1, le=1000), WHOLE]
Texts = Annotated[list[str], Field(min_length=1, max_length=256)]


class Inputs(RequestModel):
    """The inputs of all tasks; each takes some of them."""

    text: FullText | None = None
    image: Annotated[Image.Image | None, Via(Any, _read_image)] = None
    audio: Recording | None = None
    top_k: Count | None = None
    function_to_apply: Literal["sigmoid", "softmax", "none"] | None = None
    candidate_labels: Texts | None = None
    hypothesis_template: FullText | None = None
    multi_label: bool | None = None
    pool: bool | None = None
    targets: Texts | None = None
    threshold: Annotated[float, Field(ge=0, le=1)] | None = None


@dataclass(frozen=True, slots=True)
class Kind:
    """What a pipeline task takes.

    Attributes:
        name: `text`, `image` or `audio`.
        parameters: The further inputs that a request may give.
        required: Those that it must give.
        equal_sizes: Whether only images of one size share a batch.
    """

    name: str
    parameters: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    equal_sizes: bool = False


_SCORES = ("top_k", "function_to_apply")
_LABELS = ("candidate_labels", "hypothesis_template")
KINDS: dict[str, Kind] = {
    "audio-classification": Kind("audio", _SCORES),
    "automatic-speech-recognition": Kind("audio"),
    "depth-estimation": Kind("image", equal_sizes=True),
    "fill-mask": Kind("text", ("top_k", "targets")),
    "image-classification": Kind("image", _SCORES),
    "image-feature-extraction": Kind("image", ("pool",)),
    "object-detection": Kind("image", ("threshold",), equal_sizes=True),
    "text-classification": Kind("text", _SCORES),
    "token-classification": Kind("text"),
    "zero-shot-classification": Kind("text", (*_LABELS, "multi_label"), ("candidate_labels",)),
    "zero-shot-image-classification": Kind("image", _LABELS, ("candidate_labels",)),
}
"""By the tasks of `config.PIPELINE_TASKS`."""


def read_inputs(inputs: Mapping[str, Any], kind: Kind) -> tuple[Any, dict[str, Any]]:
    """Returns the value of a request and its parameters; an input that is None is not given.

    Raises:
        RequestError: An input is missing, unknown or of the wrong kind.
    """
    given = {name: value for name, value in inputs.items() if value is not None}
    try:
        refuse_unknown(given, (kind.name, *kind.parameters))
        for name in (kind.name, *kind.required):
            if name not in given:
                raise bad_field(name, "is required")
        read = read_request(Inputs, given)
    except RequestError as error:
        error.param = f"inputs.{error.param}"
        raise
    parameters = {name: getattr(read, name) for name in given}
    return parameters.pop(kind.name), parameters
