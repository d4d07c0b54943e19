"""One image's steps around `infer` and `stream`: what the class gets and what it may give back.

Decoding and encoding of files happen elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from truthgpt_serve.errors import ServerError
from truthgpt_serve.server.images.files import is_image
from truthgpt_serve.usage.counted import Usage, current_usage

USAGE_KEYS = ("input_tokens", "output_tokens")
DEFAULT_PIXELS = 1024 * 1024
"""Of an image whose request does not say its size, before it is made."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far one image is.

    Attributes:
        step: Denoising steps done, or None while it waits.
        num_steps: Denoising steps in all, or None while it waits.
        queue_position: Requests before it, or None once it is at work.
    """

    step: int | None = None
    num_steps: int | None = None
    queue_position: int | None = None


@dataclass(frozen=True, slots=True)
class PartialImage:
    """An unfinished image: a PIL image, and which of the request's partial images it is."""

    image: Any
    index: int


@dataclass(frozen=True, slots=True)
class ImageResult:
    """A finished image.

    Attributes:
        image: A PIL image.
        seed: The seed that made it, or None when it is unknown.
        usage: Token counts as the class gave them, or None.
    """

    image: Any
    seed: int | None
    usage: dict[str, Any] | None


def expected_work(model: Any, inputs: Mapping[str, Any]) -> tuple[int, int]:
    """Returns about how many denoising steps and pixels an image will have.

    Args:
        model: The class's instance, which says it if it has `expected_work`.
        inputs: What the class gets; without `steps` there is one.

    Raises:
        TruthGPTError: The class finds an input wrong.
    """
    ask = getattr(model, "expected_work", None)
    if callable(ask):
        steps, num_pixels = ask(inputs)
        return int(steps), int(num_pixels)
    return int(inputs.get("steps") or 1), _expected_pixels(inputs)


def _expected_pixels(inputs: Mapping[str, Any]) -> int:
    """Returns about how many pixels an image will have, by what the class gets."""
    if "width" in inputs:
        return int(inputs["width"] * inputs["height"])
    image = inputs.get("image")
    if image is not None and not isinstance(image, list):
        return int(image.width * image.height)
    return DEFAULT_PIXELS


class ImageCodec:
    """One image of a request.

    Args:
        inputs: What the class gets.
        label: The class's name, for messages.
        partial_images: How many unfinished images are wanted.
        progress: Whether progress is wanted.
        shared: Whether other images of the request get the same uploads.
        num_pixels: About how many it will have.
    """

    takes_long = False

    def __init__(
        self,
        inputs: Mapping[str, Any],
        label: str,
        *,
        partial_images: int = 0,
        progress: bool = False,
        shared: bool = False,
        num_pixels: int = DEFAULT_PIXELS,
    ) -> None:
        self.done = False
        self._inputs = inputs
        self._label = label
        self._partial_images = partial_images
        self._num_pixels = self._num_steps = 0
        self._expected_pixels = num_pixels
        if (usage := current_usage()) is not None:
            usage.at_end.append(self._count)
        self._progress = progress
        self._shared = shared

    def inputs(self) -> dict[str, Any]:
        """Returns the inputs; a class may change them, so uploads that others get are copied."""
        inputs = dict(self._inputs)
        if self._shared:
            for name in ("image", "mask"):
                value = inputs.get(name)
                if isinstance(value, list):
                    inputs[name] = [image.copy() for image in value]
                elif value is not None:
                    inputs[name] = value.copy()
        return inputs

    def encode(self, outputs: Any) -> ImageResult:
        """Returns the finished image.

        Raises:
            ServerError: The class gave something else.
        """
        return self._result(outputs, "infer")

    def encode_chunk(self, item: Any) -> Progress | PartialImage | ImageResult | None:
        """Returns what one item of `stream` says, or None when it was not asked for.

        Raises:
            ServerError: It is nothing that an image class may yield.
        """
        if isinstance(item, Mapping):
            if "image" in item:
                self.done = True
                return self._result(item, "stream")
            if "partial_image" in item:
                return self._partial(item)
            if "step" in item or "queue_position" in item:
                return self._told(item)
        return self._result(item, "stream")

    def encode_end(self) -> None:
        """Checks that there was an image.

        Raises:
            ServerError: `stream` ended without one.
        """
        if not self.done:
            raise ServerError(
                f"{self._label}.stream ended without an image; its last item is {{'image': ...}}"
            )

    def _partial(self, item: Mapping[str, Any]) -> PartialImage | None:
        image, index = item["partial_image"], item.get("index")
        if not is_image(image) or index is None or not _is_count(index):
            raise self._wrong("stream", item, "{'partial_image': PIL image, 'index': whole number}")
        return PartialImage(image, index) if index < self._partial_images else None

    def _told(self, item: Mapping[str, Any]) -> Progress | None:
        numbers = {
            name: item.get(name)
            for name in ("step", "num_steps", "queue_position")
            if item.get(name) is not None
        }
        whole = ("step" in numbers) == ("num_steps" in numbers)
        if not whole or not all(_is_count(value) for value in numbers.values()):
            raise self._wrong(
                "stream", item, "{'step': i, 'num_steps': n} or {'queue_position': k}"
            )
        self._num_steps = max(self._num_steps, numbers.get("step") or 0)
        return Progress(**numbers) if self._progress else None

    def _result(self, outputs: Any, method: str) -> ImageResult:
        image: Any = outputs.get("image") if isinstance(outputs, Mapping) else None
        if not is_image(image):
            raise self._wrong(method, outputs, "{'image': PIL image}")
        usage, seed = outputs.get("usage"), outputs.get("seed", self._inputs.get("seed"))
        if usage is not None and not _is_usage(usage):
            raise self._wrong(
                method, usage, "whole numbers as `usage`: input_tokens and output_tokens"
            )
        if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool)):
            raise self._wrong(method, seed, "a whole number as `seed`")
        num_steps = outputs.get("num_steps")
        if num_steps is not None and not _is_count(num_steps):
            raise self._wrong(method, num_steps, "a whole number as `num_steps`")
        self._num_steps = num_steps or int(self._inputs.get("steps") or 0) or self._num_steps
        self._num_pixels = image.width * image.height
        return ImageResult(image, seed, dict(usage) if usage is not None else None)

    def _count(self, usage: Usage) -> None:
        """Adds the image to what its request used; of one that was stopped, the steps made.

        They are known where the class streams them; one that does not adds them itself.
        """
        if self._num_pixels:
            usage.images += 1
            usage.megapixel_steps += (self._num_steps or 1) * self._num_pixels / 1e6
        elif not usage.failed:
            usage.megapixel_steps += self._num_steps * self._expected_pixels / 1e6

    def _wrong(self, method: str, found: Any, wanted: str) -> ServerError:
        verb = "yielded" if method == "stream" else "returned"
        verbs = "yields" if method == "stream" else "returns"
        return ServerError(
            f"{self._label}.{method} {verb} {_described(found)}; an image-generation model "
            f"{verbs} {wanted}"
        )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_usage(usage: Any) -> bool:
    return isinstance(usage, Mapping) and all(_is_count(usage.get(key)) for key in USAGE_KEYS)


def _described(item: Any) -> str:
    if not isinstance(item, Mapping):
        return type(item).__name__
    for name in ("image", "partial_image"):
        if name in item and not is_image(item[name]):
            return f"a dict whose {name!r} is {type(item[name]).__name__}"
    fields = ", ".join(f"{key!r}: {str(value)[:40]}" for key, value in list(item.items())[:5])
    return f"a dict with {fields or 'nothing in it'}"
