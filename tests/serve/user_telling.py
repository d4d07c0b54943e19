"""A class as users write them, which says which process answers."""

from __future__ import annotations

import os
from typing import Any

from truthgpt_serve import register_model


@register_model("telling")
class Telling:
    """Answers with the number of its process."""

    def load(self, cfg: dict[str, Any]) -> None:
        self.text = str(os.getpid())

    def infer(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {"text": self.text}
