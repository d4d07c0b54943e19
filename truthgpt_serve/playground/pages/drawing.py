"""What is known of images that are being made, from the events of the stream."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from html import escape
from typing import Any

from truthgpt_serve.playground.client import ServiceFault

MAX_IMAGES = 4
_TYPES = {"png", "jpeg", "webp"}


@dataclass(slots=True)
class Drawing:
    """One image.

    Attributes:
        number: Which of the request, from 0.
        prompt: What it shall show.
        seed: Its seed, or None while it is unknown.
        data: The image or a preview of it, as base64.
        format: Its file format.
        step: Denoising steps that are done.
        num_steps: All of them, or 0 while that is unknown.
        queue_position: Its place among those that wait, or None.
        done: Whether `data` is the image itself.
    """

    number: int
    prompt: str
    seed: int | None = None
    data: str = ""
    format: str = "png"
    step: int = 0
    num_steps: int = 0
    queue_position: int | None = None
    done: bool = False

    def to_html(self) -> str:
        """Returns the image with its seed and its progress."""
        name = f"Image {self.number + 1}"
        seed = "" if self.seed is None else f", seed {self.seed}"
        image = '<div class="tg-blank" aria-hidden="true"></div>'
        if self.data:
            kind = "" if self.done else "Unfinished: "
            image = (
                f'<img alt="{escape(kind + self.prompt)}" '
                f'src="data:image/{self.format};base64,{self.data}">'
            )
        return (
            f'<figure class="tg-figure">{image}<figcaption>{name}{seed}'
            f"{self._progress(name)}</figcaption></figure>"
        )

    def _progress(self, name: str) -> str:
        if self.done:
            return (
                f' <a class="tg-save" download="image-{self.number + 1}.{self.format}" '
                f'href="data:image/{self.format};base64,{self.data}">Save</a>'
                f'<span class="tg-sr"> {name.lower()}</span>'
            )
        if not self.num_steps:
            place = "" if self.queue_position is None else f", place {self.queue_position + 1}"
            return f"<span>waiting{place}</span>"
        return (
            f'<progress max="{self.num_steps}" value="{self.step}" aria-label="{name}"></progress>'
            f"<span>step {self.step} of {self.num_steps}</span>"
        )


class Drawings:
    """All images of one request.

    Args:
        images: In order.
    """

    def __init__(self, images: list[Drawing]) -> None:
        self.images = images

    def add(self, event: dict[str, Any]) -> None:
        """Takes over an event of the stream.

        Raises:
            ServiceFault: It is of no image of the request, or no image.
        """
        number = event.get("index", 0)
        if not isinstance(number, int) or not 0 <= number < len(self.images):
            raise ServiceFault("The service sent an image that was not asked for")
        image = self.images[number]
        kind = str(event.get("type", "")).rpartition(".")[2]
        if kind == "progress":
            image.queue_position = _count(event.get("queue_position"))
            image.step = _count(event.get("step")) or image.step
            image.num_steps = _count(event.get("num_steps")) or image.num_steps
        elif kind in ("partial_image", "completed"):
            image.data = _checked(event.get("b64_json"))
            image.format = str(event.get("output_format") or "png")
            if image.format not in _TYPES:
                raise ServiceFault("The service sent an image in an unknown format")
            image.done = kind == "completed"
            image.seed = event["seed"] if isinstance(event.get("seed"), int) else image.seed

    def remove_empty(self) -> None:
        """Leaves out the images of which nothing came."""
        self.images = [image for image in self.images if image.data]

    def slots(self) -> list[str | None]:
        """Returns the HTML of each image, and None for each place that is left."""
        left = MAX_IMAGES - len(self.images)
        return [*(image.to_html() for image in self.images), *[None] * left]


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and 0 <= value <= 1_000_000 else None


def _checked(data: Any) -> str:
    """Returns base64 that may stand in a page. Raises ServiceFault for anything else."""
    try:
        if not isinstance(data, str):
            raise ValueError
        base64.b64decode(data, validate=True)
    except (ValueError, binascii.Error):
        raise ServiceFault("The service sent something that is not an image") from None
    return data
