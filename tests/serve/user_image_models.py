"""Image classes as users write them; a test copies this file into a folder and serves it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from truthgpt_serve import register_model


def paint(inputs: dict[str, Any]) -> Image.Image:
    """A gradient that shows seed, steps and size."""
    width, height = inputs.get("width", 32), inputs.get("height", 24)
    seed, steps = inputs.get("seed", 0), inputs.get("steps", 0)
    image = Image.new("RGB", (width, height), (seed % 256, steps % 256, 0))
    for x in range(width):
        image.putpixel((x, 0), (x % 256, seed % 256, steps % 256))
    return image


@register_model("painter")
class Painter:
    """Has only what an image class must have."""

    def load(self, cfg: dict[str, Any]) -> None:
        self.cfg = cfg

    def infer(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {"image": paint(inputs)}


@register_model("studio")
class Studio:
    """Edits and streams; `slow` in the prompt makes it take its time.

    A file `closed-...` beside this one tells of each stream that has ended.
    """

    operations = ("generation", "edit", "variation")

    def load(self, cfg: dict[str, Any]) -> None:
        self.folder = Path(__file__).parent

    def infer(self, inputs: dict[str, Any]) -> dict[str, Any]:
        image = inputs.get("image")
        image = image[0] if isinstance(image, list) else image
        if image is not None and "mask" in inputs:
            image = image.copy()
            image.paste((255, 0, 0), mask=inputs["mask"])
        usage = {"input_tokens": len(inputs["prompt"].split()), "output_tokens": 5}
        return {"image": image or paint(inputs), "usage": usage}

    def stream(self, inputs: dict[str, Any]) -> Iterator[dict[str, Any]]:
        num_steps = 10_000 if "slow" in inputs["prompt"] else inputs["steps"]
        try:
            for step in range(1, num_steps + 1):
                time.sleep(0.02)
                yield {"step": step, "num_steps": num_steps}
                if step <= inputs.get("partial_images", 0):
                    image = Image.new("RGB", (8, 8), (step, 0, 0))
                    yield {"partial_image": image, "index": step - 1}
            yield self.infer(inputs)
        finally:
            (self.folder / f"closed-{uuid.uuid4().hex}").touch()
