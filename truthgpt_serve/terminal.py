"""Removes control sequences of terminals from texts."""

from __future__ import annotations

import re

_SEQUENCE = re.compile(
    r"(?:\x1b\[|\x9b)[0-9;:<=>?]*[ -/]*[@-~]"  # colors, movements of the cursor
    r"|(?:\x1b\]|\x9d)[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)"  # titles, links, the clipboard
)
_CONTROLS: dict[int, str | None] = dict.fromkeys(
    {*range(0x20), *range(0x7F, 0xA0)} - set(map(ord, "\t\n"))
)
_BIDI = dict.fromkeys([*range(0x202A, 0x202F), *range(0x2066, 0x206A)])
"""Embeddings, overrides and isolates: they show letters in another order than they stand in."""
_SURROGATES = dict.fromkeys(range(0xD800, 0xE000), "\N{REPLACEMENT CHARACTER}")
"""No encoding of a terminal has them: writing one would raise."""
_OBEYED = _CONTROLS | _BIDI | _SURROGATES


def clean(text: str) -> str:
    """Returns a text as a terminal may show it: without escape sequences and control characters.

    Line feeds and tabs stay. Of a sequence that comes in pieces, what shows nothing is taken out.
    """
    return _SEQUENCE.sub("", text).translate(_OBEYED)
