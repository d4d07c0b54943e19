"""Encodes captions into the conditions of a denoiser.

Conditions are cached where the text encoders are not trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from truthgpt_serve.training.images.kinds.base import Conditions, Kind

MAX_CAPTION_BYTES = 512 * 2**20
"""Memory that the conditions of captions may take, where text encoders are not trained."""


class Captioner:
    """Turns captions into conditions, and remembers them where the text encoders stay the same.

    Args:
        kind: Of the pipeline.
        device: Where the encoders are.
        remember: Whether the encoders stay the same; then nothing is learned through them.
    """

    def __init__(self, kind: Kind, device: Any, *, remember: bool) -> None:
        self._kind = kind
        self._device = device
        self._remember = remember
        self._known: dict[str | None, Conditions] = {}
        self._num_bytes = 0

    def __call__(self, captions: Sequence[str | None]) -> Conditions:
        """Returns the conditions of each caption; None is the one that guidance compares with."""
        unique = list(dict.fromkeys(captions))
        if self._remember:
            with torch.no_grad():
                found = self._recall(unique)
        else:
            found = self._encode(unique)
        return {
            name: torch.stack([found[caption][name] for caption in captions])
            for name in next(iter(found.values()))
        }

    def _recall(self, unique: list[str | None]) -> dict[str | None, Conditions]:
        missing = [caption for caption in unique if caption not in self._known]
        made = self._encode(missing)
        found = {caption: made.get(caption) or self._known[caption] for caption in unique}
        for caption, conditions in made.items():
            size = sum(value.numel() * value.element_size() for value in conditions.values())
            if self._num_bytes + size <= MAX_CAPTION_BYTES:
                # A copy: a row of a batch would keep the whole batch in memory.
                self._known[caption] = {name: value.clone() for name, value in conditions.items()}
                self._num_bytes += size
        return found

    def _encode(self, unique: list[str | None]) -> dict[str | None, Conditions]:
        texts = [caption for caption in unique if caption is not None]
        found: dict[str | None, Conditions] = {}
        if texts:
            conditions = self._kind.encode(texts, self._device)
            for row, caption in enumerate(texts):
                found[caption] = {name: value[row] for name, value in conditions.items()}
        if None in unique:
            nothing = self._kind.encode_nothing(self._device)
            found[None] = {name: value[0] for name, value in nothing.items()}
        return found
