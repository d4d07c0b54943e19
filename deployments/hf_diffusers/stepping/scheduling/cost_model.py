"""Estimates how long a denoising step of a request takes, from those that went before.

The caller makes the keys.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

NEWEST_WEIGHT = 0.2
DEFAULT_SECONDS_PER_MEGAPIXEL = 0.1
DEFAULT_MEGAPIXELS = 1.0


@dataclass(frozen=True)
class CostKey:
    """What the cost of a step depends on."""

    pipeline: str
    size: tuple[int, int] | None
    """Height and width in pixels; None: the pipeline's own default."""

    @property
    def megapixels(self) -> float:
        """Area of the image, a stated guess where the size is not known."""
        return self.size[0] * self.size[1] / 1e6 if self.size else DEFAULT_MEGAPIXELS


class CostModel:
    """A moving average of seconds per image and step. Guarded by the engine's lock."""

    def __init__(self, max_entries: int = 1024) -> None:
        self._max_entries = max_entries
        self._seconds: OrderedDict[CostKey, float] = OrderedDict()

    def observe(self, key: CostKey, seconds: float) -> None:
        """Takes in one measured step of one image."""
        before = self._seconds.get(key)
        mixed = seconds if before is None else before + NEWEST_WEIGHT * (seconds - before)
        self._seconds[key] = mixed
        self._seconds.move_to_end(key)
        while len(self._seconds) > self._max_entries:
            self._seconds.popitem(last=False)

    def estimate(self, key: CostKey) -> float:
        """Returns seconds per image and step.

        A size not seen yet is estimated from the one of the same pipeline that is nearest in area,
        in proportion to the area; a pipeline not seen yet by a constant, which orders requests by
        size.
        """
        known = self._seconds.get(key)
        if known is not None:
            return known
        others = [item for item in self._seconds if item.pipeline == key.pipeline]
        if not others:
            return DEFAULT_SECONDS_PER_MEGAPIXEL * key.megapixels
        nearest = min(others, key=lambda item: abs(item.megapixels - key.megapixels))
        return self._seconds[nearest] * key.megapixels / nearest.megapixels
