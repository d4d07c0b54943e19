"""OpenAI's image requests, JSON and forms."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from truthgpt_serve.config.images import ImagesSection
from truthgpt_serve.errors import RequestError, TooLargeError, UnsupportedError
from truthgpt_serve.http.multipart import Part
from truthgpt_serve.request_fields import MAX_SEED
from truthgpt_serve.request_schema import bad_field, check_at_most, read_request, refuse_unknown
from truthgpt_serve.server.forms import read_form
from truthgpt_serve.server.images.fields import (
    MEANT,
    OF_EDITS,
    OPENAI_ONLY,
    EditFields,
    GenerationFields,
    VariationFields,
)
from truthgpt_serve.server.images.files import OutputFormat, check_edges
from truthgpt_serve.wording import shown, too_long, unknown_field

Operation = Literal["generation", "edit", "variation"]
ROUTES: dict[Operation, str] = {
    "generation": "/v1/images/generations",
    "edit": "/v1/images/edits",
    "variation": "/v1/images/variations",
}
Fields = GenerationFields | EditFields | VariationFields
FIELDS: dict[Operation, type[Fields]] = {
    "generation": GenerationFields,
    "edit": EditFields,
    "variation": VariationFields,
}
FILES: dict[Operation, tuple[str, ...]] = {
    "generation": (),
    "edit": ("image", "mask"),
    "variation": ("image",),
}
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


@dataclass(slots=True)
class ImageRequest:
    """A request for images, checked.

    Attributes:
        fields: Its fields.
        operation: Which route it came to.
        inputs: What the model's class gets, `prompt` always.
        output: How images are written.
        images: Uploaded files.
        mask: The uploaded mask, or None.
    """

    fields: Fields
    operation: Operation
    inputs: dict[str, Any]
    output: OutputFormat
    images: list[bytes] = field(default_factory=list)
    mask: bytes | None = None


class ImageParser:
    """Reads image requests for one model.

    Args:
        limits: `serving.images`.
        adapters: The adapters that the model has, or None when only its class knows.
    """

    def __init__(self, limits: ImagesSection, adapters: Collection[str] | None) -> None:
        self._limits = limits
        self._adapters = adapters

    def parse_json(self, body: Mapping[str, Any]) -> ImageRequest:
        """Checks a body of `POST /v1/images/generations`.

        Raises:
            RequestError: A field is missing, wrong or unknown; `param` names it.
            UnsupportedError: A field asks for what this server does not have.
        """
        return self._request("generation", body)

    def parse_form(self, operation: Operation, parts: list[Part]) -> ImageRequest:
        """Checks the parts of a form for edits or variations; errors as in `parse_json`.

        Raises:
            TooLargeError: It has too many images.
        """
        body, files = read_form(parts, FIELDS[operation], ("image", "mask"))
        most = self._limits.max_input_images if operation == "edit" else 1
        for name in files:
            _refuse_openai_only(name, "a file")
            if name not in FILES[operation]:
                raise bad_field(name[:80], f"is not a file that {ROUTES[operation]} takes")
        images, masks = files.get("image", []), files.get("mask", [])
        if not images:
            raise bad_field("image", "is required: send a PNG, JPEG or WebP file")
        if len(images) > most:
            raise TooLargeError(
                f"`image` {too_long(most, len(images), 'images')}",
                param="image",
                code="too_many_images",
            )
        if len(masks) > 1:
            raise bad_field("mask", "is given more than once")
        request = self._request(operation, body)
        request.images, request.mask = images, masks[0] if masks else None
        return request

    def _request(self, operation: Operation, body: Mapping[str, Any]) -> ImageRequest:
        given = {name: value for name, value in body.items() if value is not None}
        names = [name for name in body if name in given or name not in OPENAI_ONLY]
        _refuse_names(operation, names, given)
        fields = read_request(FIELDS[operation], given)
        self._check_limits(fields)
        _check_together(fields)
        output = OutputFormat(
            fields.output_format, fields.output_compression, opaque=fields.background == "opaque"
        )
        return ImageRequest(fields, operation, _inputs(operation, fields), output)

    def _check_limits(self, fields: Fields) -> None:
        limits = self._limits
        check_at_most("n", fields.n, limits.max_images)
        for name in ("prompt", "negative_prompt"):
            number = len(getattr(fields, name) or "")
            if number > limits.max_prompt_chars:
                raise bad_field(name, too_long(limits.max_prompt_chars, number, "characters"))
        width, height = fields.size or (0, 0)
        if width * height > limits.max_pixels:
            number = width * height
            raise bad_field("size", too_long(limits.max_pixels, number, "pixels"))
        for name in fields.adapters or () if self._adapters is not None else ():
            if name not in (self._adapters or ()):
                exist = ", ".join(sorted(self._adapters or ())) or "none"
                message = f"there is no adapter {name!r}; those of this model: {exist}"
                raise RequestError(message, param="adapters")


def _refuse_names(operation: Operation, names: Collection[str], given: Mapping[str, Any]) -> None:
    fields = (*FIELDS[operation].model_fields, *FILES[operation])
    for name in names:
        if name in OPENAI_ONLY:
            _refuse_openai_only(name, shown(given[name]))
        if name in OF_EDITS and operation == "generation":
            message = f"{unknown_field(name)}; /v1/images/edits changes an image"
            raise RequestError(message, param=name, code="unknown_parameter")
    refuse_unknown(names, fields, MEANT)


def _refuse_openai_only(name: str, value: str) -> None:
    if name in OPENAI_ONLY:
        message = f"`{name}` is {value}, but this model {OPENAI_ONLY[name]}"
        raise UnsupportedError(message, param=name)


def _check_together(fields: Fields) -> None:
    """Refuses fields that contradict each other."""
    if fields.output_format == "png" and fields.output_compression != 100:
        raise bad_field(
            "output_compression",
            f"is {fields.output_compression}, but png has no compression that loses anything; "
            "set `output_format` to jpeg or webp",
        )
    if fields.size is not None:
        check_edges(fields.output_format, fields.size)
    if fields.stream and fields.response_format == "url":
        raise bad_field("response_format", "is 'url', but a stream brings the images as base64")
    for name in ("partial_images", "progress"):
        if getattr(fields, name) and not fields.stream:
            raise bad_field(name, "is only allowed when `stream` is true")
    if (fields.seed or 0) + fields.n - 1 > MAX_SEED:
        raise bad_field(
            "seed",
            f"is {fields.seed}: with {fields.n} images the last one's seed would be above "
            f"{MAX_SEED}",
        )


def _inputs(operation: Operation, fields: Fields) -> dict[str, Any]:
    """Returns what the model's class gets."""
    inputs: dict[str, Any] = {"prompt": fields.prompt}
    for name in _PASSED:
        if (value := getattr(fields, name, None)) is not None:
            inputs[name] = value
    if fields.quality != "auto":
        inputs["quality"] = fields.quality
    if fields.size is not None:
        inputs["width"], inputs["height"] = fields.size
    if operation != "generation":
        inputs["operation"] = operation
    if fields.partial_images:
        inputs["partial_images"] = fields.partial_images
    return inputs
