"""Classes as users write them; a test copies this file into a folder of its own and serves it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from truthgpt_serve import register_model
from truthgpt_serve.errors import UnsupportedError


@register_model("shouting")
class Shouting:
    """Has only what a class must have."""

    def load(self, cfg: dict[str, Any]) -> None:
        self.mark = "!" * cfg["seed"]

    def infer(self, inputs: dict[str, Any]) -> dict[str, Any]:
        if inputs.get("fail"):
            raise LookupError("the secret reason")
        if "seed" in inputs:
            raise UnsupportedError("`seed` is not for those who shout", param="seed")
        began = time.time()
        time.sleep(float(inputs.get("sleep_s", 0)))
        text = inputs["text"].upper() + self.mark
        return {"text": text, "began": began, "ended": time.time()}


@register_model("spelling")
class Spelling:
    """Streams letter by letter."""

    def load(self, cfg: dict[str, Any]) -> None:
        self.pause_s = 0.03

    def infer(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {"text": "".join(piece["text"] for piece in self.stream(inputs))}

    def stream(self, inputs: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for letter in inputs["text"][: inputs["max_new_tokens"]]:
            time.sleep(self.pause_s)
            yield {"text": f"{letter}-"}
