"""`/v1/infer` in front of another server or engine: what its JSON cannot carry."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from truthgpt_serve.errors import RequestError
from truthgpt_serve.server.openai_backend import OpenAIBackend

IMAGE = Image.new("RGB", (8, 6))


@pytest.mark.parametrize(
    ("inputs", "place"),
    [
        ({"image": IMAGE}, "inputs.image"),
        ({"audio": np.zeros(9)}, "inputs.audio"),
        ({"extra": {"images": [1, "a", None, IMAGE]}}, "inputs.extra.images[3]"),
    ],
)
async def test_an_image_or_array_is_refused(inputs: dict[str, Any], place: str) -> None:
    nothing: Any = None  # no transport: nothing is sent
    backend = OpenAIBackend(nothing, "completion", with_usage=False)
    with pytest.raises(RequestError, match="cannot be an image or an array") as caught:
        await backend.infer({"text": "a", **inputs}, nothing)
    assert caught.value.param == place
    with pytest.raises(RequestError):
        await anext(backend.stream({"text": "a", **inputs}, nothing))
