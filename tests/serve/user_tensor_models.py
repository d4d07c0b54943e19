"""A class on plain numpy, as a user writes it; a test copies this file and serves it."""

from __future__ import annotations

from typing import Any

import numpy

from truthgpt_serve import register_model


@register_model("statistics")
class Statistics:
    """Knows nothing of protocols, batches or Ray."""

    def load(self, cfg: dict[str, Any]) -> None:
        self.scale = numpy.float32(cfg["seed"])

    def infer(self, inputs: dict[str, Any]) -> dict[str, Any]:
        values = inputs["values"]
        return {"mean": values.mean(axis=1) * self.scale, "largest": values.max(axis=1)}
