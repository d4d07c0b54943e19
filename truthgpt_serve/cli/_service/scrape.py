"""Reads the few numbers that the commands show from pages of Prometheus metrics."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample


class Samples:
    """Samples of the metrics that were asked for; lines that cannot be read are left out.

    Args:
        page: In Prometheus' text format.
        names: The metrics that count.
    """

    def __init__(self, page: str, names: Collection[str]) -> None:
        lines = (line for line in page.splitlines() if line.startswith(tuple(names)))
        self._samples = [
            sample for line in lines for sample in _read_line(line) if sample.name in names
        ]

    def total(self, name: str, **labels: str) -> float | None:
        """Returns the sum of a metric's samples with these labels; None where there is none."""
        found = [
            sample.value
            for sample in self._samples
            if sample.name == name and labels.items() <= sample.labels.items()
        ]
        return sum(found) if found else None


def _read_line(line: str) -> Iterator[Sample]:
    try:
        for family in text_string_to_metric_families(line):
            yield from family.samples
    except (ValueError, IndexError):  # the second of a line that is cut off
        return
