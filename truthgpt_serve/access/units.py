"""What the limits of keys are measured in, and how answers say what is left of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from truthgpt_serve.access.counting.charges import Standing
from truthgpt_serve.http.asgi import Headers


@dataclass(frozen=True, slots=True)
class Unit:
    """What is counted in a minute.

    Attributes:
        field: Of `Limits`.
        name: In headers.
        words: In messages, with the number of the limit.
        suffix: Of the count's name.
    """

    field: str
    name: str
    words: str
    suffix: str


_PARTS = ("limit", "remaining", "reset")
REQUESTS = Unit("requests_per_minute", "requests", "send {} requests in a minute", "")
TOKENS = Unit("tokens_per_minute", "tokens", "use {} tokens in a minute", "tokens")
IMAGES = Unit(
    "image_megapixel_steps_per_minute",
    "image-megapixel-steps",
    "use {:g} denoising steps times megapixels in a minute",
    "images",
)
_HEADERS = {
    unit.name: [f"x-ratelimit-{part}-{unit.name}".encode() for part in _PARTS]
    for unit in (REQUESTS, TOKENS, IMAGES)
}
CONCURRENT = "concurrent"
"""The reason of a refusal of too many requests at the same time; others are names of units."""


def limit_headers(unit: Unit, limit: float, standing: Standing) -> Headers:
    """Returns OpenAI's headers of a limit."""
    names = _HEADERS[unit.name]
    return [
        (names[0], _number(limit)),
        (names[1], b"%d" % max(0, limit - standing.used)),
        (names[2], b"%ds" % math.ceil(standing.reset_s)),
    ]


@lru_cache(maxsize=1024)
def _number(limit: float) -> bytes:
    return f"{limit:.15g}".encode()
