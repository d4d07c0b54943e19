"""Line charts as SVG: no script, colors from the page, readable without color, with a title."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 480, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 14, 14, 50
NUM_STYLES = 6
"""Colors and dashes that the page's style defines, as `s0` to `s5`."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a chart.

    Attributes:
        name: Its name in the legend.
        points: Pairs of x and y, in the order of x.
        style: Number of its color.
        dashed: Whether it is dashed: the second statistic of the same thing.
        marked: Whether each point has a mark.
    """

    name: str
    points: Sequence[tuple[float, float]]
    style: int = 0
    dashed: bool = False
    marked: bool = True


@dataclass(frozen=True, slots=True)
class Chart:
    """One chart.

    Attributes:
        ident: Unique in its page.
        title: What it shows.
        x_name: The horizontal axis with its unit.
        y_name: The vertical axis with its unit.
        lines: The lines.
        x_log: Whether the horizontal axis is logarithmic.
    """

    ident: str
    title: str
    x_name: str
    y_name: str
    lines: Sequence[Line]
    x_log: bool = False

    def to_svg(self) -> str:
        """Returns the chart with its legend; an empty text if it has no points."""
        points = [point for line in self.lines for point in line.points]
        if not points:
            return ""
        horizontal = _Axis([x for x, _ in points], self.x_log, _LEFT, WIDTH - _RIGHT)
        vertical = _Axis([0.0, *(y for _, y in points)], False, HEIGHT - _BOTTOM, _TOP)
        parts = [
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
            f'aria-labelledby="{self.ident}-t {self.ident}-d">',
            f'<title id="{self.ident}-t">{escape(self.title)}</title>',
            f'<desc id="{self.ident}-d">{escape(self._description())}</desc>',
            *(self._grid(horizontal, vertical)),
            *(_draw(line, horizontal, vertical) for line in self.lines if line.points),
            "</svg>",
            self._legend(),
        ]
        return "\n".join(parts)

    def _description(self) -> str:
        lines = [
            f"{line.name}: from {_short(line.points[0][1])} to {_short(line.points[-1][1])}"
            for line in self.lines
            if line.points
        ]
        return f"{self.y_name} by {self.x_name}. {'; '.join(lines)}."

    def _grid(self, horizontal: _Axis, vertical: _Axis) -> list[str]:
        parts = []
        for value in vertical.ticks():
            y = vertical.place(value)
            parts.append(
                f'<line class="grid" x1="{_LEFT}" y1="{y:.1f}" x2="{WIDTH - _RIGHT}" y2="{y:.1f}"/>'
                f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{_short(value)}</text>'
            )
        for value in horizontal.ticks():
            x = horizontal.place(value)
            parts.append(
                f'<line class="grid" x1="{x:.1f}" y1="{HEIGHT - _BOTTOM}" x2="{x:.1f}" '
                f'y2="{HEIGHT - _BOTTOM + 5}"/><text x="{x:.1f}" y="{HEIGHT - _BOTTOM + 20}" '
                f'text-anchor="middle">{_short(value)}</text>'
            )
        middle = (_TOP + HEIGHT - _BOTTOM) / 2
        parts.append(
            f'<text class="axis" x="{(_LEFT + WIDTH - _RIGHT) / 2}" y="{HEIGHT - 8}" '
            f'text-anchor="middle">{escape(self.x_name)}</text>'
            f'<text class="axis" transform="translate(14 {middle}) rotate(-90)" '
            f'text-anchor="middle">{escape(self.y_name)}</text>'
        )
        return parts

    def _legend(self) -> str:
        items = "".join(
            f'<li><svg class="key" viewBox="0 0 34 12" aria-hidden="true">'
            f'<path class="line {_classes(line)}" d="M1 6H33"/>'
            f"{_mark(line.style, 17, 6) if line.marked else ''}</svg>{escape(line.name)}</li>"
            for line in self.lines
            if line.points
        )
        return f'<ul class="legend">{items}</ul>'


class _Axis:
    """Places values between two ends, in pixels."""

    def __init__(self, values: Sequence[float], log: bool, start: float, end: float) -> None:
        self._log = log and min(values) > 0
        self._values = sorted(set(values))
        self._low, high = self._scale(min(values)), self._scale(max(values))
        if not self._log:
            step = _step(high - min(0.0, self._low))
            self._low = min(0.0, self._low)
            high = max(step, math.ceil(high / step - 1e-9) * step)
            self._step = step
        self._span = (high - self._low) or 1.0
        self._start, self._end = start, end

    def _scale(self, value: float) -> float:
        return math.log2(value) if self._log else value

    def place(self, value: float) -> float:
        share = (self._scale(value) - self._low) / self._span
        return self._start + share * (self._end - self._start)

    def ticks(self) -> list[float]:
        if self._log:  # the loads themselves
            every = max(1, math.ceil(len(self._values) / 8))
            return self._values[::every]
        count = round(self._span / self._step)
        return [self._low + at * self._step for at in range(count + 1)]


def _step(span: float) -> float:
    """Returns a round distance for about five ticks."""
    if span <= 0:
        return 1.0
    raw = span / 5
    power = 10.0 ** math.floor(math.log10(raw))
    return next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)


def _draw(line: Line, horizontal: _Axis, vertical: _Axis) -> str:
    places = [(horizontal.place(x), vertical.place(y)) for x, y in line.points]
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    marks = ""
    if line.marked or len(places) == 1:
        marks = "".join(
            f"<g><title>{escape(line.name)}: {_short(y_value)} at {_short(x_value)}</title>"
            f"{_mark(line.style, x, y)}</g>"
            for (x, y), (x_value, y_value) in zip(places, line.points, strict=True)
        )
    return f'<path class="line {_classes(line)}" d="{path}"/>{marks}'


def _classes(line: Line) -> str:
    return f"s{line.style % NUM_STYLES}{' dashed' if line.dashed else ''}"


def _mark(style: int, x: float, y: float) -> str:
    """Returns a mark whose shape differs from one style to the next."""
    number = style % NUM_STYLES
    shapes = (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4"',
        f'<rect x="{x - 3.5:.1f}" y="{y - 3.5:.1f}" width="7" height="7"',
        f'<path d="M{x:.1f} {y - 5:.1f}l5 9h-10z"',
        f'<path d="M{x:.1f} {y - 5:.1f}l5 5l-5 5l-5-5z"',
        f'<path d="M{x:.1f} {y + 5:.1f}l5-9h-10z"',
        f'<ellipse cx="{x:.1f}" cy="{y:.1f}" rx="5.5" ry="3"',
    )
    return f'{shapes[number]} class="mark s{number}"/>'


def _short(value: float) -> str:
    if value and abs(value) < 0.01:
        return f"{value:.1e}"
    text = f"{value:.4g}" if abs(value) < 10000 else f"{value / 1000:.4g}k"
    return text
