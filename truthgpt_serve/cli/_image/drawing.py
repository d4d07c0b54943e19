"""Asks an image model for images, and follows how far each of them is."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from truthgpt_serve.cli._service.client import ServiceClient
from truthgpt_serve.cli._service.failures import ServiceFault

PATH = "/v1/images/generations"
PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True, slots=True)
class Drawn:
    """A finished image.

    Attributes:
        index: Which of the images that were asked for, from 0.
        data: The file, a PNG.
        seed: What repeats it, or None.
        size: `WIDTHxHEIGHT`, or None.
    """

    index: int
    data: bytes
    seed: int | None
    size: str | None


@dataclass(frozen=True, slots=True)
class Step:
    """How far an image is.

    Attributes:
        index: Which of the images that were asked for, from 0.
        step: Denoising steps that are done, or None while it waits.
        num_steps: How many there are, or None.
        queue_position: Its place in the queue, or None once it has begun.
    """

    index: int
    step: int | None = None
    num_steps: int | None = None
    queue_position: int | None = None


def draw(
    client: ServiceClient, request: dict[str, Any], follow: Callable[[Step], None]
) -> Iterator[Drawn]:
    """Yields the images of a request, each when it is finished.

    Args:
        client: The service.
        request: Fields of `/v1/images/generations`.
        follow: Is told of each step.

    Raises:
        ServiceFault: The service refused, failed, or sent fewer images than were asked for.
    """
    wanted = {**request, "output_format": "png"}
    num_drawn = 0
    with client.stream(PATH, {**wanted, "progress": True}) as events:
        for event in events:
            kind = str(event.get("type")).rpartition(".")[2]
            if kind == "progress":
                follow(_step(event))
            elif kind == "completed":
                num_drawn += 1
                yield _drawn(event)
    if num_drawn < int(request.get("n", 1)):
        raise ServiceFault(f"the service sent {num_drawn} of {request.get('n', 1)} images")


def _step(event: dict[str, Any]) -> Step:
    names = ("step", "num_steps", "queue_position")
    found = {name: event[name] for name in names if isinstance(event.get(name), int)}
    return Step(_index(event), **found)


def _drawn(event: dict[str, Any]) -> Drawn:
    try:
        data = base64.b64decode(event.get("b64_json") or "", validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise ServiceFault(f"the service sent an image that is not base64: {error}") from error
    if not data.startswith(PNG):
        raise ServiceFault("the service sent something that is not a PNG image")
    seed, size = event.get("seed"), event.get("size")
    return Drawn(
        _index(event),
        data,
        seed if isinstance(seed, int) else None,
        size if isinstance(size, str) else None,
    )


def _index(event: dict[str, Any]) -> int:
    index = event.get("index")
    return index if isinstance(index, int) else 0
