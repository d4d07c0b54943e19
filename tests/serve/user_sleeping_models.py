"""A class of a user's that loads for as long as a file is there."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from truthgpt_serve import register_model

MOST_S = 600


@register_model("sleeping")
class Sleeping:
    """Answers a text with itself."""

    def load(self, cfg: dict[str, Any]) -> None:
        held, deadline = Path(cfg["serving"]["engine"]["held"]), time.monotonic() + MOST_S
        while held.exists() and time.monotonic() < deadline:
            time.sleep(0.1)

    def infer(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {"text": inputs["text"]}
