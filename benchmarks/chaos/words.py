"""The echo model, which notes in a file which process works on which request."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

from deployments.echo.deployment import EchoModel
from truthgpt_serve import register_model

MARK = "request-"
"""How the first word of every prompt begins; its number follows."""


@register_model("words")
class Words(EchoModel):
    """Takes the settings of `echo`, and `notes`, the folder for its files."""

    def load(self, cfg: dict[str, Any]) -> None:
        """Reads `serving.engine` and opens this process's file."""
        engine = dict(cfg["serving"]["engine"])
        folder = Path(engine.pop("notes"))
        super().load({"serving": {"engine": engine}})
        self._file = os.open(folder / str(os.getpid()), os.O_CREAT | os.O_APPEND | os.O_WRONLY)

    async def stream(self, inputs: dict[str, Any]) -> AsyncGenerator[dict[str, str], None]:
        """Notes the request's number, and goes on as `echo` does."""
        word = inputs["text"].split()[0].removeprefix(MARK)
        os.write(self._file, f"{word}\n".encode())
        async for item in super().stream(inputs):
            yield item


def read_notes(folder: Path) -> dict[int, int]:
    """Returns the process that each request came to, by the requests' numbers."""
    return {
        int(word): int(file.name)
        for file in folder.iterdir()
        for word in file.read_text().split()
        if word.isdigit()
    }
