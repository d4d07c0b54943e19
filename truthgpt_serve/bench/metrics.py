"""The figures of a measurement, with the definitions of `vllm bench serve`, in bounded memory."""

from __future__ import annotations

import math
import random
import statistics
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from truthgpt_serve.bench.outcome import Outcome

MAX_SAMPLES = 1_000_000
"""Values of one series that are kept; of more, a random sample (8 MB) stands for all."""
MAX_DETAILED = 100_000
"""Requests whose own times are kept with `--save-detailed`."""
MAX_EXAMPLES = 5
"""Different messages that are kept of each kind of error."""
SLO_NAMES = ("ttft", "tpot", "e2el")
_NUM_QUANTILES = 101


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Returns a percentile of sorted values, interpolated as numpy does by default; 0.0 of none."""
    if not ordered:
        return 0.0
    place = (len(ordered) - 1) * percent / 100
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


class Series:
    """Values of one quantity, all of them or a random sample (algorithm R of Vitter, 1985).

    Args:
        max_samples: How many are kept.

    Attributes:
        count: How many there were.
    """

    def __init__(self, max_samples: int = MAX_SAMPLES) -> None:
        self.count = 0
        self._total = 0.0
        self._max_samples = max_samples
        self._samples = array("d")
        self._random = random.Random(0)

    @property
    def sampled(self) -> bool:
        """Whether percentiles come from a sample."""
        return self.count > len(self._samples)

    def extend(self, values: Iterable[float]) -> None:
        """Adds values."""
        for value in values:
            self.count += 1
            self._total += value
            if len(self._samples) < self._max_samples:
                self._samples.append(value)
            elif (place := self._random.randrange(self.count)) < self._max_samples:
                self._samples[place] = value

    def ordered(self) -> list[float]:
        """Returns the kept values, sorted."""
        return sorted(self._samples)

    def statistics(self, percents: Iterable[float], scale: float = 1.0) -> dict[str, float]:
        """Returns mean, median, standard deviation and percentiles, by name; zeros of no values."""
        ordered = self.ordered()
        found = {
            "mean": self._total / self.count if self.count else 0.0,
            "median": percentile(ordered, 50),
            "std": statistics.pstdev(ordered) if ordered else 0.0,
        }
        found |= {f"p{percent:g}": percentile(ordered, percent) for percent in percents}
        return {name: value * scale for name, value in found.items()}

    def quantiles(self, scale: float = 1.0) -> list[float]:
        """Returns the percentiles 0 to 100, enough to draw the distribution; none of no values."""
        ordered = self.ordered()
        if not ordered:
            return []
        return [round(percentile(ordered, at) * scale, 4) for at in range(_NUM_QUANTILES)]


class Recorder:
    """Collects outcomes and reckons what `vllm bench serve` reports of them.

    Args:
        slo_ms: The longest `ttft`, `tpot` and `e2el` of a good request, in milliseconds.
        keep: Whether each request's own times are kept.
    """

    def __init__(self, slo_ms: Mapping[str, float] | None = None, *, keep: bool = False) -> None:
        self.series = {name: Series() for name in ("ttft", "tpot", "itl", "e2el", "queue")}
        self.slo_ms = dict(slo_ms or {})
        self.completed = self.failed = self.good = 0
        self.input_tokens = self.output_tokens = 0
        self.counted_by_chunks = 0
        self.num_chunks = 0
        self.errors: Counter[str] = Counter()
        self.examples: dict[str, Counter[str]] = {}
        self.detailed: list[Outcome] = []
        self.not_kept = 0
        self.tokens_per_second: Counter[int] = Counter()
        self.requests_per_second: Counter[int] = Counter()
        self._keep = keep
        self._origin_s: float | None = None

    def begin(self, origin_s: float) -> None:
        """Sets the time from which seconds are counted, unless an earlier one has."""
        if self._origin_s is None:
            self._origin_s = origin_s

    def add(self, outcome: Outcome) -> None:
        """Takes one outcome."""
        self.begin(outcome.start_s)
        if self._keep and len(self.detailed) < MAX_DETAILED:
            self.detailed.append(outcome)
        elif self._keep:
            self.not_kept += 1
        if outcome.ok:
            self._add_success(outcome)
        else:
            self._add_failure(outcome)

    def _add_success(self, outcome: Outcome) -> None:
        self.completed += 1
        self.input_tokens += outcome.input_tokens
        self.output_tokens += outcome.output_tokens
        if not outcome.has_usage:
            self.counted_by_chunks += 1
        self.series["ttft"].extend((outcome.ttft_s,))
        self.series["e2el"].extend((outcome.latency_s,))
        self.series["queue"].extend((outcome.queue_s,))
        self.series["itl"].extend(outcome.itls_s)
        if outcome.output_tokens > 1:
            self.series["tpot"].extend((outcome.tpot_s,))
        self.good += self._is_good(outcome)
        self._add_seconds(outcome)

    def _is_good(self, outcome: Outcome) -> bool:
        values = {"ttft": outcome.ttft_s, "tpot": outcome.tpot_s, "e2el": outcome.latency_s}
        return all(values[name] * 1000 <= limit for name, limit in self.slo_ms.items())

    def _add_seconds(self, outcome: Outcome) -> None:
        """Counts each event in the second when it came, and the request in all of its seconds."""
        start_s = outcome.start_s - (self._origin_s or 0.0)
        at_s = start_s + outcome.ttft_s
        self.tokens_per_second[int(at_s)] += 1
        self.num_chunks += 1 + len(outcome.itls_s)
        for itl_s in outcome.itls_s:
            at_s += itl_s
            self.tokens_per_second[int(at_s)] += 1
        for second in range(int(start_s), int(start_s + outcome.latency_s) + 1):
            self.requests_per_second[second] += 1

    def _add_failure(self, outcome: Outcome) -> None:
        self.failed += 1
        self.errors[outcome.error] += 1
        examples = self.examples.setdefault(outcome.error, Counter())
        if outcome.detail in examples or len(examples) < MAX_EXAMPLES:
            examples[outcome.detail] += 1

    def figures(self, duration_s: float, percents: Sequence[float]) -> dict[str, Any]:
        """Returns the figures under the key names of `vllm bench serve`."""
        duration_s = max(duration_s, 1e-9)
        found: dict[str, Any] = {
            "duration": duration_s,
            "completed": self.completed,
            "failed": self.failed,
            "total_input_tokens": self.input_tokens,
            "total_output_tokens": self.output_tokens,
            "request_throughput": self.completed / duration_s,
            "request_goodput": self.good / duration_s if self.slo_ms else None,
            "output_throughput": self.output_tokens / duration_s,
            "total_token_throughput": (self.input_tokens + self.output_tokens) / duration_s,
            "max_output_tokens_per_s": float(max(self.tokens_per_second.values(), default=0)),
            "max_concurrent_requests": max(self.requests_per_second.values(), default=0),
            "rtfx": 0.0,
        }
        for name in ("ttft", "tpot", "itl", "e2el"):
            for word, value in self.series[name].statistics(percents, 1000).items():
                found[f"{word}_{name}_ms"] = value
        return found
