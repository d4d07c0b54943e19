"""Reads the few numbers that the commands show from pages of Prometheus metrics."""

from __future__ import annotations

import re
from collections.abc import Collection

_SAMPLE = re.compile(r"([a-zA-Z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)", re.ASCII)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


class Samples:
    """Samples of the metrics that were asked for.

    Args:
        page: In Prometheus' text format.
        names: The metrics that count.
    """

    def __init__(self, page: str, names: Collection[str]) -> None:
        self._values: dict[str, list[tuple[dict[str, str], float]]] = {}
        for line in page.splitlines():
            if not line.startswith(tuple(names)):
                continue
            match = _SAMPLE.fullmatch(line.strip())
            if match is None or match[1] not in names:
                continue
            try:
                value = float(match[3])
            except ValueError:
                continue
            labels = dict(_LABEL.findall(match[2] or ""))
            self._values.setdefault(match[1], []).append((labels, value))

    def total(self, name: str, **labels: str) -> float | None:
        """Returns the sum of a metric's samples with these labels; None where there is none."""
        found = [
            value for own, value in self._values.get(name, ()) if labels.items() <= own.items()
        ]
        return sum(found) if found else None
