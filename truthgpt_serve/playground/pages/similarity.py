"""How alike texts are: cosines between their embeddings, and the table that shows them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from operator import mul

MAX_LINES = 32
MAX_SHOWN = 60
"""Letters of a line in the table's heads."""


def split_lines(text: str) -> list[str]:
    """Returns the lines that are not empty."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def cosines(vectors: Sequence[Sequence[float]]) -> list[list[float]]:
    """Returns the cosine of each two vectors, shape `[n, n]`; 0 where a vector is all zero.

    Args:
        vectors: Shape `[n, dimensions]`.
    """
    lengths = [math.sqrt(_product(one, one)) for one in vectors]
    return [
        [
            _product(one, other) / (length * other_length) if length * other_length else 0.0
            for other, other_length in zip(vectors, lengths, strict=True)
        ]
        for one, length in zip(vectors, lengths, strict=True)
    ]


def _product(one: Sequence[float], other: Sequence[float]) -> float:
    if len(one) != len(other):
        raise ValueError(f"vectors of {len(one)} and {len(other)} numbers cannot be compared")
    return math.fsum(map(mul, one, other))


def to_table(lines: Sequence[str], matrix: Sequence[Sequence[float]]) -> str:
    """Returns the matrix as an HTML table; the more alike, the darker the ground."""
    heads = "".join(
        f'<th scope="col" title="{escape(line)}">{at}</th>' for at, line in enumerate(lines, 1)
    )
    rows = "".join(
        f'<tr><th scope="row">{at}. {escape(_shorten(line))}</th>{"".join(map(_cell, row))}</tr>'
        for at, (line, row) in enumerate(zip(lines, matrix, strict=True), 1)
    )
    return (
        '<div class="tg-scroll" tabindex="0" role="region" aria-label="Similarity of the lines">'
        '<table class="tg-table tg-matrix"><caption>Cosine similarity: 1 is the same direction, '
        f'0 is unrelated</caption><thead><tr><th scope="col">Line</th>{heads}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _cell(value: float) -> str:
    share = round(max(0.0, min(1.0, value)) * 100)
    return f'<td style="--tg-share:{share}%">{value:.2f}</td>'


def _shorten(line: str) -> str:
    return line if len(line) <= MAX_SHOWN else f"{line[: MAX_SHOWN - 1]}…"
