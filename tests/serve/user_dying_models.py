"""A class of a user's that dies in the ways its inputs, or a file, name."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from truthgpt_serve import register_model


def die(how: str) -> None:
    """Ends the process, or fails."""
    if how == "segfault":
        ctypes.string_at(0)
    elif how == "exit":
        os._exit(3)
    elif how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "abort":
        os.abort()
    elif how == "raise":
        raise ValueError("the weights are of another kind")
    elif how == "missing":
        Path("/no/such/weights.bin").read_bytes()
    elif how == "sys.exit":
        sys.exit(4)


@register_model("dying")
class Dying:
    """Answers a text with itself; a text that begins with `die ` ends the process so."""

    def load(self, cfg: dict[str, Any]) -> None:
        how = cfg["serving"]["engine"].get("load")
        if how:
            die(how)

    def infer(self, inputs: dict[str, Any]) -> dict[str, Any]:
        text = inputs["text"]
        if text.startswith("wait "):
            time.sleep(float(text.split()[1]))
        if text.startswith("die "):
            die(text.split()[1])
        return {"text": text}
