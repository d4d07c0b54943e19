"""What each pipeline task takes: the kind of its input and the parameters a request may give.

Knows names and types, no pipeline.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy
from PIL import Image

from truthgpt_serve.errors import RequestError

Check = tuple[Callable[[Any], bool], str]
"""Whether a value is allowed, and what is."""

COUNT: Check = (lambda v: type(v) is int and 1 <= v <= 1000, "a whole number from 1 to 1000")
SHARE: Check = (
    lambda v: isinstance(v, int | float) and not isinstance(v, bool) and 0 <= v <= 1,
    "a number from 0 to 1",
)
FLAG: Check = (lambda v: isinstance(v, bool), "true or false")
TEXT: Check = (lambda v: isinstance(v, str) and v != "", "a string that is not empty")
TEXTS: Check = (
    lambda v: isinstance(v, list) and 1 <= len(v) <= 256 and all(isinstance(s, str) for s in v),
    "a list of 1 to 256 strings",
)
FUNCTION: Check = (lambda v: v in ("sigmoid", "softmax", "none"), "sigmoid, softmax or none")


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
    parameters: Mapping[str, Check] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    equal_sizes: bool = False


_SCORES = {"top_k": COUNT, "function_to_apply": FUNCTION}
_LABELS = {"candidate_labels": TEXTS, "hypothesis_template": TEXT}
KINDS: dict[str, Kind] = {
    "audio-classification": Kind("audio", _SCORES),
    "automatic-speech-recognition": Kind("audio"),
    "depth-estimation": Kind("image", equal_sizes=True),
    "fill-mask": Kind("text", {"top_k": COUNT, "targets": TEXTS}),
    "image-classification": Kind("image", _SCORES),
    "image-feature-extraction": Kind("image", {"pool": FLAG}),
    "object-detection": Kind("image", {"threshold": SHARE}, equal_sizes=True),
    "text-classification": Kind("text", _SCORES),
    "token-classification": Kind("text"),
    "zero-shot-classification": Kind(
        "text", {**_LABELS, "multi_label": FLAG}, ("candidate_labels",)
    ),
    "zero-shot-image-classification": Kind("image", _LABELS, ("candidate_labels",)),
}


def kind_of_task(task: str) -> Kind:
    """Returns what a task of `config.PIPELINE_TASKS` takes."""
    return KINDS[task]


def read_inputs(inputs: Mapping[str, Any], kind: Kind) -> tuple[Any, dict[str, Any]]:
    """Returns the value of a request and its parameters.

    Raises:
        RequestError: An input is missing, unknown or of the wrong kind.
    """
    names = (kind.name, *kind.parameters)
    for name in inputs:
        if name not in names:
            raise _bad(name, f"is unknown; this model takes {', '.join(names)}")
    for name in (kind.name, *kind.required):
        if inputs.get(name) is None:
            raise _bad(name, "is required")
    parameters = {}
    for name, (check, wanted) in kind.parameters.items():
        value = inputs.get(name)
        if value is None:
            continue
        if not check(value):
            raise _bad(name, f"must be {wanted}")
        parameters[name] = value
    return _READERS[kind.name](inputs[kind.name]), parameters


def _read_text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise _bad("text", "must be a string that is not empty")
    return value


def _read_image(value: Any) -> Image.Image:
    if not isinstance(value, Image.Image):
        raise _bad("image", "must be an image, as {b64_json, format}")
    return value.convert("RGB")


def read_audio(value: Any) -> Any:
    """Returns a recording as float32 `[samples]`. Raises RequestError."""
    if not isinstance(value, numpy.ndarray) or value.dtype.kind not in "fiu" or value.ndim != 1:
        raise _bad("audio", "must be an array of one dimension, as {shape, dtype, b64}")
    if not value.size:
        raise _bad("audio", "has no samples")
    if value.dtype.kind in "iu":
        value = value / numpy.iinfo(value.dtype).max
    samples = value.astype(numpy.float32)
    if not numpy.isfinite(samples).all():
        raise _bad("audio", "has samples that are not finite")
    return samples


_READERS: dict[str, Callable[[Any], Any]] = {
    "text": _read_text,
    "image": _read_image,
    "audio": read_audio,
}


def _bad(name: str, message: str) -> RequestError:
    return RequestError(f"`{name}` {message}", param=f"inputs.{name}")
