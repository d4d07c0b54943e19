"""What Schemathesis cannot make by itself; it loads this module by `SCHEMATHESIS_HOOKS`."""

from __future__ import annotations

import io
import math
import wave

import schemathesis
from hypothesis import strategies as st
from PIL import Image

RATE = 16000


def recording(seconds: float, channels: int = 1) -> bytes:
    """Returns a WAV file with a tone."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((channels, 2, RATE, 0, "NONE", ""))
        for at in range(int(seconds * RATE)):
            value = int(8000 * math.sin(at / 6))
            file.writeframesraw(value.to_bytes(2, "little", signed=True) * channels)
    return buffer.getvalue()


def mask(alpha: int) -> bytes:
    """Returns a PNG of one pixel, as the images that Schemathesis sends have."""
    buffer = io.BytesIO()
    Image.new("RGBA", (1, 1), (0, 0, 0, alpha)).save(buffer, "PNG")
    return buffer.getvalue()


SOUNDS = [recording(0.1), recording(0.3, channels=2), recording(0), recording(0.1)[:-7], b"RIFF"]
MASKS = [mask(0), mask(128), mask(255), b"", mask(0)[:40]]
schemathesis.openapi.format("recording", st.sampled_from(SOUNDS))
schemathesis.openapi.format("mask", st.sampled_from(MASKS))
schemathesis.openapi.media_type(
    "audio/wav", st.sampled_from(SOUNDS), aliases=["audio/flac", "audio/mpeg", "audio/ogg"]
)
