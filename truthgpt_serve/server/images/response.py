"""OpenAI's image answers and stream events as bytes.

Shapes: `ImagesResponse` and `image_generation.*`, `image_edit.*` of OpenAI's API reference. Beyond
them: `seed` and `index`, and `*.progress` events for clients that ask for them.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from truthgpt_serve.http.json_body import encode_json
from truthgpt_serve.http.sse import format_event
from truthgpt_serve.server.images.codec import ImageResult, PartialImage, Progress
from truthgpt_serve.server.images.files import EncodedImage
from truthgpt_serve.server.images.request import ImageRequest, Operation

_EVENTS: dict[Operation, str] = {
    "generation": "image_generation",
    "edit": "image_edit",
    "variation": "image_variation",
}
_RESPONSE_QUALITIES = ("low", "medium", "high", "xhigh", "max")
"""The values of `quality` that OpenAI's answers have; its requests have more."""


@dataclass(frozen=True, slots=True)
class Image:
    """A finished image as a file, with what the class said of it."""

    file: EncodedImage
    result: ImageResult


def encode_response(request: ImageRequest, images: Sequence[Image], urls: Sequence[str]) -> bytes:
    """Returns the body of an answer that is not streamed.

    Args:
        request: The request.
        images: The images in their order.
        urls: Where they lie, in the same order; empty when the answer holds them.
    """
    data = []
    for index, image in enumerate(images):
        item: dict[str, Any] = (
            {"url": urls[index]} if urls else {"b64_json": _base64(image.file.data)}
        )
        if image.result.seed is not None:
            item["seed"] = image.result.seed
        data.append(item)
    body = {
        "created": int(time.time()),
        "background": _background(images[0].file),
        "data": data,
        "output_format": request.output.name,
        "size": _size(images[0].file),
    }
    if request.fields.quality in _RESPONSE_QUALITIES:
        body["quality"] = request.fields.quality
    usages = [image.result.usage for image in images]
    if (usage := _usage([usage for usage in usages if usage is not None])) is not None:
        body["usage"] = usage
    return encode_json(body)


def encode_completed(request: ImageRequest, image: Image, index: int) -> bytes:
    """Returns the event of a finished image."""
    usage = None if image.result.usage is None else _usage([image.result.usage])
    fields = {"background": _background(image.file), "usage": usage, "index": index}
    if image.result.seed is not None:
        fields["seed"] = image.result.seed
    return _image_event(request, "completed", image.file, fields)


def encode_partial(
    request: ImageRequest, file: EncodedImage, piece: PartialImage, index: int
) -> bytes:
    """Returns the event of an unfinished image."""
    fields = {
        "background": request.fields.background,
        "partial_image_index": piece.index,
        "index": index,
    }
    return _image_event(request, "partial_image", file, fields)


def encode_progress(request: ImageRequest, progress: Progress, index: int) -> bytes:
    """Returns the event of a step done, or of a place in the queue."""
    fields: dict[str, Any] = {"created_at": int(time.time()), "index": index}
    for name in ("step", "num_steps", "queue_position"):
        if (value := getattr(progress, name)) is not None:
            fields[name] = value
    return _event(request, "progress", fields)


def _image_event(
    request: ImageRequest, kind: str, file: EncodedImage, fields: dict[str, Any]
) -> bytes:
    return _event(
        request,
        kind,
        {
            "b64_json": _base64(file.data),
            "created_at": int(time.time()),
            "output_format": request.output.name,
            "quality": request.fields.quality,
            "size": _size(file),
            **fields,
        },
    )


def _event(request: ImageRequest, kind: str, fields: dict[str, Any]) -> bytes:
    name = f"{_EVENTS[request.operation]}.{kind}"
    return format_event(encode_json({"type": name, **fields}), name)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _size(file: EncodedImage) -> str:
    return f"{file.width}x{file.height}"


def _background(file: EncodedImage) -> str:
    return "transparent" if file.transparent else "opaque"


def _usage(usages: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Returns the sum of what the class counted for each image, in OpenAI's shape."""
    if not usages:
        return None
    total = {key: sum(usage[key] for usage in usages) for key in ("input_tokens", "output_tokens")}
    return {
        "input_tokens": total["input_tokens"],
        "input_tokens_details": {"text_tokens": total["input_tokens"], "image_tokens": 0},
        "output_tokens": total["output_tokens"],
        "total_tokens": total["input_tokens"] + total["output_tokens"],
    }
