"""Image classes as users write them, for the tests of the image routes; some break the contract."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from PIL import Image

from truthgpt_serve.errors import RequestError


def paint(inputs: dict[str, Any]) -> Image.Image:
    """Returns an image that shows what it was made from."""
    size = (inputs.get("width", 48), inputs.get("height", 32))
    seed = inputs.get("seed", 0)
    image = Image.new("RGB", size, (seed % 256, inputs["steps"] % 256, len(inputs["prompt"]) % 256))
    image.putpixel((0, 0), (1, 2, 3))
    return image


class Recorder:
    """Remembers what it got; `last` is the instance that was made last."""

    last: Any = None

    def __init__(self) -> None:
        type(self).last = self
        self.inputs: list[dict[str, Any]] = []

    def load(self, cfg: dict[str, Any]) -> None:
        self.cfg = cfg


class Plain(Recorder):
    """Has only what an image class must have."""

    def infer(self, inputs: dict[str, Any]) -> dict[str, Any]:
        self.inputs.append(inputs)
        return {"image": paint(inputs)}


class Studio(Recorder):
    """Can do all that a class can."""

    operations = ("generation", "edit", "variation")
    default_steps = None
    accepts_seed = True

    def infer(self, inputs: dict[str, Any]) -> dict[str, Any]:
        self.inputs.append(inputs)
        if inputs.get("scheduler") == "unknown":
            raise RequestError("there is no scheduler 'unknown'", param="scheduler")
        usage = {"input_tokens": len(inputs["prompt"].split()), "output_tokens": 7}
        if "image" in inputs:
            image = inputs["image"]
            return {"image": image[0] if isinstance(image, list) else image, "usage": usage}
        return {"image": paint({"steps": 4, **inputs}), "usage": usage, "seed": inputs["seed"]}

    def stream(self, inputs: dict[str, Any]) -> Iterator[dict[str, Any]]:
        yield {"queue_position": 2}
        steps = inputs.get("steps", 4)
        for step in range(1, steps + 1):
            yield {"step": step, "num_steps": steps}
            if step <= 3:
                yield {"partial_image": Image.new("RGB", (8, 8), (step, 0, 0)), "index": step - 1}
        yield self.infer(inputs)


class Batching(Recorder):
    def infer(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return self.infer_batch([inputs])[0]

    def infer_batch(self, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        self.inputs.append({"size": len(batch)})
        time.sleep(0.05)
        return [{"image": paint(inputs)} for inputs in batch]


class Waiting(Recorder):
    """Waits in each image until it is released or cancelled; `fail` in the prompt fails at once."""

    accepts_seed = False

    def __init__(self) -> None:
        super().__init__()
        self.release = threading.Event()
        self.ongoing = 0
        self.most = 0
        self.cancelled = 0

    async def infer(self, inputs: dict[str, Any]) -> dict[str, Any]:
        self.inputs.append(inputs)
        self.ongoing += 1
        self.most = max(self.most, self.ongoing)
        try:
            while not self.release.is_set():
                if "fail" in inputs["prompt"] and inputs["seed"] % 2:
                    raise RequestError("this one fails", param="prompt")
                await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.ongoing -= 1
        return {"image": paint(inputs)}

    async def stream(self, inputs: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        yield {"partial_image": Image.new("RGB", (8, 8)), "index": 0}
        yield await self.infer(inputs)


class Odd(Recorder):
    """Gives back what the prompt says."""

    def infer(self, inputs: dict[str, Any]) -> Any:
        image = Image.new("RGB", (8, 8))
        answers: dict[str, Callable[[], Any]] = {
            "none": lambda: None,
            "text": lambda: {"text": "x"},
            "bytes": lambda: {"image": b"\x89PNG"},
            "bare": lambda: image,
            "usage": lambda: {"image": image, "usage": {"input_tokens": -1}},
            "seed": lambda: {"image": image, "seed": "7"},
            "empty": lambda: {"image": Image.new("RGB", (0, 0))},
            "error": lambda: inputs["secret-key"],
            "rgba": lambda: {"image": Image.new("RGBA", (8, 8), (255, 0, 0, 0))},
            "gray": lambda: {"image": Image.new("L", (8, 8), 77)},
            "float": lambda: {"image": Image.new("F", (8, 8), 77.0)},
            "cmyk": lambda: {"image": Image.new("CMYK", (8, 8), (0, 255, 255, 0))},
        }
        return answers[inputs["prompt"]]()


class OddStream(Odd):
    def stream(self, inputs: dict[str, Any]) -> Iterator[Any]:
        image = Image.new("RGB", (8, 8))
        yield {"partial_image": image, "index": 0}
        items: dict[str, list[Any]] = {
            "nothing": [],
            "number": [3],
            "step": [{"step": 1}],
            "negative": [{"queue_position": -1}],
            "partial": [{"partial_image": "x", "index": 0}],
            "index": [{"partial_image": image}],
            "unknown": [{"color": 1}],
        }
        yield from items[inputs["prompt"]]
