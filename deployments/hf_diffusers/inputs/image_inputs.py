"""The images of a request: which pipeline they ask for, and the pipeline arguments they become."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from deployments.hf_diffusers.config import DiffusersSettings, parse_size
from deployments.hf_diffusers.inputs.fields import Fields
from deployments.hf_diffusers.inputs.images import (
    fit,
    has_holes,
    to_mask,
    to_mask_tensor,
    to_tensor,
    upright,
)
from deployments.hf_diffusers.pipelines.info import (
    CONTROL,
    IMAGE_TO_IMAGE,
    INPAINTING,
    TEXT_TO_IMAGE,
    PipelineInfo,
)
from truthgpt_serve.errors import RequestError, UnsupportedError
from truthgpt_serve.wording import shown, suggest

OPERATIONS = ("generation", "edit", "variation")
LEAST_EDGE = 64
InfoByName = Mapping[str, PipelineInfo]


@dataclass(slots=True)
class InputImages:
    """The images of a request, upright.

    Attributes:
        images: What is edited; empty for text to image.
        mask: White where to paint, or None.
        control: What a ControlNet follows, or None.
    """

    images: list[Image.Image]
    mask: Image.Image | None = None
    control: Image.Image | None = None


def read_input_images(fields: Fields, info: InfoByName) -> InputImages:
    """Returns the images of a request.

    With a ControlNet the last image of an edit is what it follows. Without a mask, the transparent
    parts of an edited image are painted anew.

    Raises:
        RequestError: They contradict each other, the operation or the model.
    """
    images, mask, control = list(fields.image), fields.mask, fields.control_image
    operation = fields.operation or ("edit" if images else "generation")
    if operation not in OPERATIONS:
        fix = suggest(operation, OPERATIONS)
        raise RequestError(f"`operation` is {shown(operation)}: {fix}", param="operation")
    if operation != "generation" and not images:
        raise RequestError(f"`image` is required for an {operation}", param="image")
    if operation == "generation" and images:
        message = "`image` belongs to an edit or a variation, not to a generation"
        raise RequestError(message, param="image")
    if len(mask) > 1 or len(control) > 1:
        name = "mask" if len(mask) > 1 else "control_image"
        raise RequestError(f"`{name}` must be one image", param=name)
    if mask and not images:
        raise RequestError("`mask` needs the `image` that it belongs to", param="mask")
    has_control = any(name.startswith(CONTROL) for name in info)
    if has_control and operation == "edit" and not control and images:
        control = [images.pop()]  # the last image of an edit is what the ControlNet follows
    if control and not has_control:
        message = "this model has no ControlNet"
        raise UnsupportedError(message, param="control_image")
    upright_images = [upright(image) for image in images]
    painted = upright(mask[0]) if mask else None
    if painted is None and operation == "edit" and len(images) == 1:
        can_paint = any(name.endswith(INPAINTING) for name in info)
        painted = images[0] if can_paint and has_holes(images[0]) else None
    input_images = InputImages(upright_images, control=upright(control[0]) if control else None)
    if painted is not None:
        input_images.mask = _check_mask(painted, upright_images)
    return input_images


def _check_mask(mask: Image.Image, images: list[Image.Image]) -> Image.Image:
    if not images:
        message = "`mask` needs an `image` beside the one that the ControlNet follows"
        raise RequestError(message, param="mask")
    if mask.size != images[0].size:
        sizes = ["{}x{}".format(*image.size) for image in (mask, images[0])]
        message = f"`mask` is {sizes[0]} and `image` {sizes[1]}: they must be of one size"
        raise RequestError(message, param="mask")
    return to_mask(mask)


def choose_pipeline(input_images: InputImages, info: InfoByName) -> str:
    """Returns the name of the pipeline that the images ask for.

    Raises:
        UnsupportedError: The model does not have it, or takes fewer images.
    """
    name = TEXT_TO_IMAGE
    if input_images.images:
        name = INPAINTING if input_images.mask is not None else IMAGE_TO_IMAGE
    if input_images.control is not None:
        name = CONTROL + name
    if name not in info:
        known = ", ".join(info)
        param = "mask" if input_images.mask else "image" if input_images.images else "prompt"
        raise UnsupportedError(f"this model cannot do {name}; it can do {known}", param=param)
    if len(input_images.images) > 1 and not info[name].several_images:
        message = f"`image` holds {len(input_images.images)} images, and this model takes one"
        raise UnsupportedError(message, param="image")
    return name


def place_input_images(
    fields: Fields,
    input_images: InputImages,
    info: PipelineInfo,
    settings: DiffusersSettings,
    arguments: dict[str, Any],
) -> None:
    """Adds size, images and mask to the arguments of the call.

    An edit without a size takes that of its image, made to fit; a given size stretches the image.

    Raises:
        RequestError: The size is not possible.
    """
    width, height = fields.width, fields.height
    first = input_images.images[0] if input_images.images else input_images.control
    looks = bool(input_images.images) and not info.starts_from_image
    if width is None and height is None and looks:
        # The pipeline looks at the images and chooses a size by itself.
        arguments["image"] = _to_rgb(input_images.images, info)
        return
    if width is None and height is None and first is not None:
        width, height = fit(
            *first.size,
            multiple=info.size_multiple,
            max_pixels=settings.max_pixels,
            max_edge=settings.max_edge,
            min_edge=least_edge(info, settings),
        )
    fallback = default_size(info, settings)
    width = fallback[0] if width is None else width
    height = fallback[1] if height is None else height
    check_size(width, height, info, settings)
    if info.takes("width") and info.takes("height"):
        arguments["width"], arguments["height"] = width, height
    if looks:
        arguments["image"] = _to_rgb(input_images.images, info)
    elif input_images.images:
        arguments["image"] = to_tensor(input_images.images[0], width, height)
    if input_images.mask is not None:
        arguments["mask_image"] = to_mask_tensor(input_images.mask, width, height)
    if input_images.control is not None:
        key = "control_image" if info.takes("control_image") else "image"
        arguments[key] = to_tensor(input_images.control, width, height)
    if (scale := fields.control_scale) is not None:
        if not info.name.startswith(CONTROL):
            raise UnsupportedError("`control_scale` needs a `control_image`", param="control_scale")
        arguments["controlnet_conditioning_scale"] = scale


def default_size(info: PipelineInfo, settings: DiffusersSettings) -> tuple[int, int]:
    """Returns width and height of an image whose request names none."""
    return parse_size(settings.default_size) if settings.default_size else (info.width, info.height)


def _to_rgb(images: list[Image.Image], info: PipelineInfo) -> Any:
    converted = [image.convert("RGB") for image in images]
    return converted if info.several_images else converted[0]


def least_edge(info: PipelineInfo, settings: DiffusersSettings) -> int:
    """Returns the least width and height in pixels."""
    return settings.min_edge or min(LEAST_EDGE, info.width, info.height)


def check_size(width: int, height: int, info: PipelineInfo, settings: DiffusersSettings) -> None:
    """Refuses a size that the VAE or the settings do not allow.

    Raises:
        RequestError: The message names the number, the limit and the nearest size that would do.
    """
    step, low, high = info.size_multiple, least_edge(info, settings), settings.max_edge
    problem = ""
    for name, edge in (("width", width), ("height", height)):
        if edge % step:
            problem = f"{name} {edge} is not a multiple of {step}, which this model needs"
        if edge < low:
            problem = f"{name} {edge} is less than the least, {low}"
        if edge > high:
            problem = f"{name} {edge} is more than the largest, {high}"
    if not problem and width * height > settings.max_pixels:
        problem = f"it has {width * height} pixels, more than the largest, {settings.max_pixels}"
    if problem:
        near = fit(
            *(round(edge / step) * step or step for edge in (width, height)),
            multiple=step,
            max_pixels=settings.max_pixels,
            max_edge=high,
            min_edge=low,
        )
        message = f"`size` {width}x{height} is not possible: {problem}"
        raise RequestError(f"{message}; the nearest is {near[0]}x{near[1]}", param="size")
