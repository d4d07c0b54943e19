"""Draws curves as SVG that stands in a page without scripts and without other files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 640, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 12, 12, 28
MAX_POINTS = 600
"""Points of one line; of more, each is the mean of several steps."""
NUM_COLORS = 6
"""Classes `line-0`, `line-1` and so on, which the page's style colors."""
_NUM_TICKS = 4


@dataclass(frozen=True, slots=True)
class Line:
    """One curve.

    Attributes:
        name: Of the run.
        points: Step and value of each point, in order of steps.
        color: Number of its color.
    """

    name: str
    points: Sequence[tuple[float, float]]
    color: int = 0


def draw(title: str, lines: Sequence[Line]) -> str:
    """Returns a chart as an SVG element; values that are no numbers are left out.

    Returns:
        The element, or an empty text where there is nothing to draw.
    """
    shown = [(line, thinned(line.points)) for line in lines]
    shown = [(line, points) for line, points in shown if points]
    if not shown:
        return ""
    steps = [step for _, points in shown for step, _ in points]
    values = [value for _, points in shown for _, value in points]
    across, up = _Axis(min(steps), max(steps)), _Axis(min(values), max(values))
    last = ", ".join(f"{line.name} ends at {points[-1][1]:.4g}" for line, points in shown)
    parts = [
        f'<svg role="img" viewBox="0 0 {WIDTH} {HEIGHT}" class="chart">',
        f"<title>{escape(title)}: {escape(last)}</title>",
        *_grid(across, up),
    ]
    for line, points in shown:
        places = [_place(across, up, step, value) for step, value in points]
        color = f"line-{line.color % NUM_COLORS}"
        if len(places) == 1:
            x, y = places[0]
            parts.append(f'<circle class="{color}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>')
        else:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
            parts.append(f'<polyline class="{color}" points="{path}"/>')
    return "".join([*parts, "</svg>"])


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Returns at most `MAX_POINTS` finite points, each the mean of its neighbors."""
    finite = [point for point in points if all(map(math.isfinite, point))]
    size = math.ceil(len(finite) / MAX_POINTS) or 1
    groups = [finite[start : start + size] for start in range(0, len(finite), size)]
    return [(group[-1][0], math.fsum(v for _, v in group) / len(group)) for group in groups]


@dataclass(frozen=True, slots=True)
class _Axis:
    low: float
    high: float

    def share(self, value: float) -> float:
        """Returns where a value lies, from 0 to 1."""
        span = self.high - self.low
        return 0.5 if span <= 0 or not math.isfinite(span) else (value - self.low) / span

    def ticks(self) -> list[float]:
        """Returns the values that are written beside it."""
        if self.high <= self.low:
            return [self.low]
        step = (self.high - self.low) / _NUM_TICKS
        return [self.low + step * number for number in range(_NUM_TICKS + 1)]


def _place(across: _Axis, up: _Axis, step: float, value: float) -> tuple[float, float]:
    x = _LEFT + across.share(step) * (WIDTH - _LEFT - _RIGHT)
    return x, HEIGHT - _BOTTOM - up.share(value) * (HEIGHT - _TOP - _BOTTOM)


def _grid(across: _Axis, up: _Axis) -> list[str]:
    parts = []
    for value in up.ticks():
        _, y = _place(across, up, across.low, value)
        ends = f'x1="{_LEFT}" y1="{y:.1f}" x2="{WIDTH - _RIGHT}" y2="{y:.1f}"'
        parts.append(f'<line class="grid" {ends}/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.4g}</text>')
    for step in sorted({round(tick) for tick in across.ticks()}):
        x, _ = _place(across, up, step, up.low)
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 8}" text-anchor="middle">{step:,}</text>')
    return parts
