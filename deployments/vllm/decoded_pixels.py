"""Bounds the images that a process holds decoded, of all requests together."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

from vllm import envs
from vllm.exceptions import GracefulHTTPError

from truthgpt_serve.hardware.memory import total_memory

BYTES_OF_PIXEL = 4
SHARE_OF_MEMORY = 1 / 8
"""Of the machine's memory, for images whose requests have many pixels."""
FEW_PIXELS = 16_000_000
"""Of a request, as a photograph has: such requests may take as much once more."""


class DecodedPixels:
    """The pixels of all images that are decoded and not yet in a form for the model.

    Requests with large images wait for each other there, as one image is put into that form at a
    time, and a file of 160 KB may have 178 million pixels: each that waits takes 700 MB.

    Args:
        max_pixels: Most of them, for requests with more than `FEW_PIXELS`; others have twice that.
    """

    def __init__(self, max_pixels: int) -> None:
        self._max_pixels = max_pixels
        self._num_pixels = 0
        self._lock = threading.Lock()
        # Images end at any point of any thread, also of one that holds the lock.
        self._ended: deque[int] = deque()

    @contextmanager
    def room(self, number: int, of_request: int) -> Iterator[list[Any]]:
        """Takes room for an image while it is decoded, and then for as long as it lives.

        Args:
            number: Its pixels.
            of_request: Those of all of its request's images so far, this one included.

        Yields:
            A list for the image, once it is decoded.

        Raises:
            GracefulHTTPError: 429, there is no room now.
        """
        self._take(number, self._max_pixels * (2 if of_request <= FEW_PIXELS else 1))
        decoded: list[Any] = []
        try:
            yield decoded
        finally:
            if decoded:
                weakref.finalize(decoded.pop(), self._ended.append, number).atexit = False
            else:
                self._ended.append(number)

    def _take(self, number: int, limit: int) -> None:
        with self._lock:
            while self._ended:
                self._num_pixels -= self._ended.popleft()
            if self._num_pixels + number > limit:
                raise GracefulHTTPError(
                    "the model works on as many pixels of images as fit into its memory: send the "
                    "request again in a moment, or smaller images",
                    HTTPStatus.TOO_MANY_REQUESTS,
                )
            self._num_pixels += number


def pixels_of_machine() -> DecodedPixels:
    """Returns the bound for this machine: of its memory, and two of the largest images."""
    fitting = int(total_memory() * SHARE_OF_MEMORY) // BYTES_OF_PIXEL
    return DecodedPixels(max(fitting, 2 * envs.VLLM_MAX_IMAGE_PIXELS))
