"""The work of an image that is asked for over `/v1/infer`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from truthgpt_serve.server.images.codec import expected_work
from truthgpt_serve.server.images.files import is_image
from truthgpt_serve.usage.counted import Usage, current_usage, reserve_images


class ImageCount:
    """Holds one request to its key's limit, and counts with the steps that were made.

    They are known where the class streams them; one that does not adds those of an image whose
    client left itself.

    Args:
        model: The class's instance.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._used = current_usage()
        self._steps = self._num_steps = self._num_pixels = self._expected_pixels = 0

    async def begin(self, inputs: Mapping[str, Any]) -> None:
        """Notes the inputs, and asks whether there may be an image.

        Raises:
            RateLimitError: The key has used too much.
        """
        if self._used is None:
            return
        steps, self._expected_pixels = expected_work(self._model, _known(inputs))
        self._steps = steps if "steps" in inputs else 0
        await reserve_images(steps * self._expected_pixels / 1e6)
        self._used.at_end.append(self._count)

    def add(self, outputs: Any) -> None:
        """Notes what `infer` returned, or one item of `stream`."""
        if self._used is None or not isinstance(outputs, Mapping):
            return
        image: Any = outputs.get("image")
        step = outputs.get("step") if image is None else outputs.get("num_steps")
        if type(step) is int and step > 0:
            self._num_steps = step
        elif is_image(image):
            self._num_steps = self._steps or self._num_steps
        if is_image(image):
            self._num_pixels = image.width * image.height

    def end(self) -> None:
        """Returns None: it counts when the request has ended."""

    def _count(self, usage: Usage) -> None:
        if self._num_pixels:
            usage.images += 1
            usage.megapixel_steps += (self._num_steps or 1) * self._num_pixels / 1e6
        elif not usage.failed:
            usage.megapixel_steps += self._num_steps * self._expected_pixels / 1e6


def _known(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the inputs that say how large an image is; nothing else has been checked of them."""
    numbers = {name: inputs.get(name) for name in ("steps", "width", "height")}
    found: dict[str, Any] = {
        name: number for name, number in numbers.items() if type(number) is int and number > 0
    }
    if not {"width", "height"} <= found.keys():
        found = {name: number for name, number in found.items() if name == "steps"}
    if isinstance(quality := inputs.get("quality"), str):
        found["quality"] = quality
    return found
