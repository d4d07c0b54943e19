"""Chooses how a data set is held: encoded in memory where it fits, else decoded batch by batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from accelerate.utils import gather_object

from truthgpt_serve.training.images.data.cached import cache
from truthgpt_serve.training.images.data.load import load_images
from truthgpt_serve.training.images.data.rows import ImageRows
from truthgpt_serve.training.images.data.samples import Source

MAX_CACHED_BYTES = 2 * 2**30
"""Memory of each worker that the encoded images of one data set may take."""


class Holder:
    """Holds data sets of one run.

    Args:
        cfg: The configuration.
        accelerator: Of accelerate.
        encode: Maps uint8 pixels on the device to what is kept of them.
        bytes_per_row: What is kept of one image.
    """

    def __init__(
        self,
        cfg: dict[str, Any],
        accelerator: Any,
        encode: Callable[[Any], Any],
        bytes_per_row: int,
    ) -> None:
        self._cfg = cfg
        self._accelerator = accelerator
        self._encode = encode
        data = cfg["data"]
        self._flips = data["random_flip"]
        # A cut at another place each time gives other latents each time.
        self._cuts_anew = data["crop"] == "random"
        self._bytes_per_row = bytes_per_row * (2 if self._flips else 1)
        if cfg["training"]["component"] == "controlnet":
            self._bytes_per_row += 3 * data["resolution"] ** 2
        self._held_bytes = 0
        self.cached_all = True
        """Whether all that was held is encoded in memory."""

    def open(self) -> tuple[Source, Source | None]:
        """Returns the data to train on and that to evaluate on.

        Raises:
            TrainingError: There is no data, or a row is bad.
        """
        images, held_out = load_images(self._cfg, spread=self._spread)
        num_rows = len(images) + (len(held_out) if held_out is not None else 0)
        fits = num_rows * self._bytes_per_row <= MAX_CACHED_BYTES
        opened = self.hold(images, augmented=True, fits=fits)
        if held_out is None:
            return opened, None
        return opened, self.hold(held_out, augmented=False, fits=fits)

    def hold(self, images: ImageRows, *, augmented: bool, fits: bool = True) -> Source:
        """Returns a data set as it is held."""
        size = len(images) * self._bytes_per_row
        fits = fits and self._held_bytes + size <= MAX_CACHED_BYTES
        if not fits or (augmented and self._cuts_anew):
            self.cached_all = False
            return images
        self._held_bytes += size
        batch_size = self._cfg["training"]["eval_batch_size"]
        flips = augmented and self._flips
        return cache(images, self._encode, batch_size, self._accelerator, flips=flips)

    def _spread(self, count: int, function: Callable[[int], Any]) -> list[Any]:
        """Each worker does every n-th; all get all."""
        index, step = self._accelerator.process_index, self._accelerator.num_processes
        mine = [(one, function(one)) for one in range(index, count, step)]
        return [result for _, result in sorted(gather_object(mine), key=lambda pair: pair[0])]
