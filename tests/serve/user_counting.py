"""A class whose requests leave a mark outside and may take their process down."""

from __future__ import annotations

import ctypes
import os
import time
from pathlib import Path
from typing import Any

from truthgpt_serve import register_model


@register_model("counting")
class Counting:
    def load(self, cfg: dict[str, Any]) -> None:
        self.marks = Path(os.environ["COUNTING_FOLDER"])

    def infer(self, inputs: dict[str, Any]) -> dict[str, Any]:
        with (self.marks / inputs["text"]).open("a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(inputs.get("sleep_s", 0))
        if inputs.get("end") == "exit":
            os._exit(3)
        if inputs.get("end") == "segfault":
            ctypes.string_at(0)
        return {"text": inputs["text"]}
