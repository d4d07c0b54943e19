"""Compares two addresses measured in turns: medians over pairs of the ratio of each figure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from truthgpt_serve.bench.result import OWN

HIGHER_IS_BETTER = frozenset({"request_throughput", "output_throughput", "request_goodput"})
FIGURES = (
    "request_throughput",
    "output_throughput",
    "request_goodput",
    "mean_ttft_ms",
    "median_ttft_ms",
    "p99_ttft_ms",
    "mean_tpot_ms",
    "median_tpot_ms",
    "p99_tpot_ms",
    "mean_itl_ms",
    "p99_itl_ms",
    "mean_e2el_ms",
    "median_e2el_ms",
    "p99_e2el_ms",
)


@dataclass(frozen=True, slots=True)
class Ratio:
    """One figure under one load, of the address measured and of the one it is compared with.

    Attributes:
        load: The load in words.
        figure: The figure's key.
        value: Its median over the measurements of the address.
        against: The same of the other address.
        ratio: The median over the pairs of value / against.
        low: The lowest ratio of a pair.
        high: The highest.
        num_pairs: Pairs that have the figure.
        num_measured: Pairs of which both sides were measured.
    """

    load: str
    figure: str
    value: float
    against: float
    ratio: float
    low: float
    high: float
    num_pairs: int
    num_measured: int

    def to_json(self) -> dict[str, Any]:
        """Returns the fields by name, and None for a ratio to 0, which JSON does not have."""
        fields = asdict(self)
        return {key: None if value == math.inf else value for key, value in fields.items()}

    @property
    def pairs(self) -> str:
        """The pairs that count, in words."""
        if self.num_pairs == self.num_measured:
            return str(self.num_pairs)
        return f"{self.num_pairs} of {self.num_measured}"


def ordered_sides(pair: int, num_sides: int) -> list[int]:
    """Returns the order in which a pair's sides are measured: it turns from pair to pair."""
    order = list(range(num_sides))
    return order if pair % 2 == 0 else order[::-1]


def compare(results: Iterable[Mapping[str, Any]]) -> list[Ratio]:
    """Returns the ratios of all loads that both sides were measured under.

    Args:
        results: Results whose `truthgpt_bench` has `load`, `side` and `pair`; others are ignored.
    """
    pairs: dict[str, dict[int, dict[int, Mapping[str, Any]]]] = {}
    for result in results:
        own = result.get(OWN)
        if isinstance(own, Mapping) and own.get("side") in (0, 1):
            loads = pairs.setdefault(str(own.get("load")), {})
            loads.setdefault(int(own.get("pair") or 0), {})[own["side"]] = result
    found = []
    for load, by_pair in pairs.items():
        whole = [(sides[0], sides[1]) for sides in by_pair.values() if len(sides) == 2]
        found += [ratio for name in FIGURES if (ratio := _ratio(load, name, whole)) is not None]
    return found


def _ratio(
    load: str, figure: str, pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]
) -> Ratio | None:
    both = [(ours.get(figure), theirs.get(figure)) for ours, theirs in pairs]
    # A rate of 0 is of a side that failed; a time of 0 was not measured.
    needed = any if figure in HIGHER_IS_BETTER else all
    values = [
        (float(ours), float(theirs))
        for ours, theirs in both
        if ours is not None and theirs is not None and needed((ours, theirs))
    ]
    if not values:
        return None
    ratios = [ours / theirs if theirs else math.inf for ours, theirs in values]
    return Ratio(
        load,
        figure,
        statistics.median(ours for ours, _ in values),
        statistics.median(theirs for _, theirs in values),
        statistics.median(ratios),
        min(ratios),
        max(ratios),
        len(values),
        len(pairs),
    )
