"""A user's class that takes the name of a built-in family; served from a `working_dir`."""

from __future__ import annotations

from typing import Any

from truthgpt_serve import register_model


@register_model("echo")
class Backwards:
    def load(self, cfg: dict[str, Any]) -> None:
        """Needs nothing."""

    def infer(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {"text": inputs["text"][::-1]}
