"""Classes that make images in steps, embeddings and transcriptions, for the playground's tests."""

# No `from __future__ import annotations`: FastAPI looks at those of a function in a function.

import asyncio
from collections.abc import AsyncIterator
from string import ascii_lowercase
from typing import Annotated, Any

from fastapi import FastAPI, Form, UploadFile
from PIL import Image

from truthgpt_serve import register_model

STEP_S = 0.15


@register_model("stepwise-squares")
class Painter:
    """Draws a square of one color."""

    accepts_seed = True
    default_steps = 12

    def load(self, cfg: dict[str, Any]) -> None:
        """Needs nothing."""

    async def infer(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Returns the image."""
        return {"image": _square(inputs["seed"], 96), "seed": inputs["seed"]}

    async def stream(self, inputs: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """Yields steps, previews and the image."""
        num_steps = inputs["steps"]
        for step in range(1, num_steps + 1):
            await asyncio.sleep(STEP_S)
            yield {"step": step, "num_steps": num_steps}
            if step == num_steps // 3:
                yield {"partial_image": _square(inputs["seed"], 16), "index": 0}
        yield await self.infer(inputs)


def _square(seed: int, size: int) -> Image.Image:
    return Image.new("RGB", (size, size), (40 * seed % 256, 90, 200))


@register_model("letter-counts")
class Letters:
    """Embeds a text as how often each letter is in it."""

    def load(self, cfg: dict[str, Any]) -> None:
        """Needs nothing."""

    def infer(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Returns the embedding."""
        return {"embedding": [float(inputs["text"].count(one)) for one in ascii_lowercase]}


@register_model("byte-counts")
class Listener:
    """Transcribes a recording as how long it is, in which language."""

    def load(self, cfg: dict[str, Any]) -> None:
        """Needs nothing."""

    def infer(self, inputs: dict[str, Any]) -> Any:
        """Does nothing."""

    def create_asgi_app(self) -> Any:
        """Returns the application that takes recordings."""
        app = FastAPI()

        @app.post("/v1/audio/transcriptions")
        async def transcribe(file: UploadFile, language: Annotated[str, Form()]) -> Any:
            return {"text": f"{len(await file.read())} bytes in {language} <b>"}

        return app
