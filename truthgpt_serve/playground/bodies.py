"""Reads, bounds and looks into the bodies of requests for the playground."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from truthgpt_serve.errors import TooLargeError
from truthgpt_serve.http.asgi import Receive


async def read_body(receive: Receive, most: int) -> bytes:
    """Returns a whole body. Raises TooLargeError for one of more than `most` bytes."""
    pieces: list[bytes] = []
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            break
        pieces.append(message.get("body", b""))
        size += len(pieces[-1])
        if size > most:
            raise TooLargeError(f"the request has more than {most} bytes")
        more = message.get("more_body", False)
    return b"".join(pieces)


def file_paths(value: Any) -> Iterator[Any]:
    """Yields where JSON names a file, as Gradio has it: under the key `path`."""
    stack = [value]
    while stack:
        here = stack.pop()
        if isinstance(here, dict):
            if "path" in here:
                yield here["path"]
            stack += here.values()
        elif isinstance(here, list):
            stack += here


def size_of(value: Any, each: int, measure: Callable[[str], int] = len) -> int:
    """Returns the size of a value as JSON has it.

    Args:
        value: The value.
        each: What each value in it counts.
        measure: What a text counts beside that.
    """
    number, stack = 0, [value]
    while stack:
        here = stack.pop()
        if isinstance(here, str):
            number += measure(here)
        elif isinstance(here, dict):
            stack += here.keys()
            stack += here.values()
        elif isinstance(here, list | tuple):
            stack += here
        number += each
    return number
