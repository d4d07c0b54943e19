"""What the requests of each key did at one replica, as metrics in Prometheus' text format."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from truthgpt_serve.access.counting.redis_counters import RedisCounters
from truthgpt_serve.access.identity import Limits
from truthgpt_serve.access.meter import OUTCOMES, Ended
from truthgpt_serve.prometheus import Histogram

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_LIMITS = {
    "requests": "requests_per_minute",
    "tokens": "tokens_per_minute",
    "image-megapixel-steps": "image_megapixel_steps_per_minute",
    "concurrent": "max_concurrent",
}
"""The fields of `Limits` by their names in metrics."""
_UNKNOWN = "model"
"""The reason of a refusal that is the model's own."""
_TOKENS = "Tokens: prompt, those of them from the prefix cache (cached), and completion."
_COUNTS = (
    ("truthgpt_key_tokens", "prompt", _TOKENS),
    ("truthgpt_key_tokens", "cached", _TOKENS),
    ("truthgpt_key_tokens", "completion", _TOKENS),
    ("truthgpt_key_images", "", "Images that were made."),
    (
        "truthgpt_key_image_megapixel_steps",
        "",
        "Denoising steps times megapixels of these images.",
    ),
    ("truthgpt_key_audio_seconds", "", "Seconds of audio."),
)
"""The name, the label `kind` and the text of each counter."""
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_TIMES = (
    (
        "truthgpt_key_queue_seconds",
        "How long a request waited for its turn at the replica.",
        _SECONDS,
    ),
    (
        "truthgpt_key_first_byte_seconds",
        "From a request's arrival at the replica to the first piece of its answer.",
        _SECONDS,
    ),
    (
        "truthgpt_key_request_seconds",
        "From a request's arrival at the replica to the last piece of its answer.",
        _SECONDS,
    ),
    (
        "truthgpt_key_output_token_seconds",
        "Mean time of each token after the first piece of an answer that came in pieces.",
        _TOKEN_SECONDS,
    ),
)
"""The name, the text and the bounds of each histogram."""


class _OfKey:
    """What the requests of one key did; plain numbers, which cost less than a library's counters.

    Attributes:
        outcomes: Requests by their end.
        refusals: By their reason.
        counts: Of `_COUNTS`, in that order.
        times: Of `_TIMES`, in that order.
    """

    __slots__ = ("counts", "outcomes", "refusals", "times")

    def __init__(self) -> None:
        self.outcomes = dict.fromkeys(OUTCOMES, 0)
        self.refusals: dict[str, int] = {}
        self.counts = [0.0] * len(_COUNTS)
        self.times = [Histogram(bounds) for _, _, bounds in _TIMES]


class State(NamedTuple):
    """Something that is well (1) or is not (0).

    Attributes:
        name: Of its metric.
        text: What the metric says.
        is_well: Returns how it is now.
    """

    name: str
    text: str
    is_well: Callable[[], bool]


def keys_state(is_current: Callable[[], bool]) -> State:
    """Returns the state of the file with the keys."""
    text = "Whether the file with the keys can be used (1), or the keys stay as they were (0)."
    return State("truthgpt_keys_current", text, is_current)


def usage_state(is_kept: Callable[[], bool]) -> State:
    """Returns the state of what keeps usage."""
    text = "Whether what the keys use is kept (1), or waits in memory (0)."
    return State("truthgpt_usage_kept", text, is_kept)


class KeyMetrics(Collector):
    """Counts by the names of keys; a replica has them for the keys that it has met.

    Args:
        store: What counts for all machines, whose state is shown too.
        limits: Returns the limits of all keys by their names, as they are now.
        states: What else is well or is not; see `State`.
    """

    def __init__(
        self,
        store: RedisCounters | None = None,
        limits: Callable[[], Mapping[str, Limits]] = dict,
        states: Sequence[State] = (),
    ) -> None:
        self._of_keys: dict[str, _OfKey] = {}
        self._lock = threading.Lock()
        registry = self._registry = CollectorRegistry()
        registry.register(_LimitMetrics(self._of_keys, limits))
        if store is not None:
            registry.register(_StoreMetrics(store))
        registry.register(_StateMetrics(states))
        registry.register(self)

    def report(self, ended: Ended) -> None:
        """Counts a request that has ended."""
        usage = ended.usage
        with self._lock:
            of_key = self._of_keys.get(ended.key)
            if of_key is None:
                of_key = self._of_keys[ended.key] = _OfKey()
            of_key.outcomes[ended.outcome] += 1
            if ended.outcome == "refused":
                reason = usage.refusal or _UNKNOWN
                of_key.refusals[reason] = of_key.refusals.get(reason, 0) + 1
            counts = of_key.counts
            counts[0] += usage.prompt_tokens
            counts[1] += usage.cached_tokens
            counts[2] += usage.completion_tokens
            if usage.images:
                counts[3] += usage.images
                counts[4] += usage.megapixel_steps
            counts[5] += usage.audio_s
            if ended.outcome == "ok" and ended.first_s is not None:
                queued, first, whole, token = of_key.times
                queued.add(usage.queued_s)
                first.add(ended.first_s)
                whole.add(ended.whole_s)
                between_s, number = ended.whole_s - ended.first_s, usage.completion_tokens
                if between_s > 0 and number > 1:
                    token.add(between_s / (number - 1))

    def page(self) -> str:
        """Returns the metrics, in version 0.0.4 of the text format."""
        return generate_latest(self._registry).decode()

    def collect(self) -> Iterator[Metric]:
        """Yields the metrics as they are now."""
        with self._lock:
            yield from list(self._metrics())

    def _metrics(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "truthgpt_key_requests",
            "Requests that have ended: ok, error, cancelled by their client, or refused (429).",
            labels=["key", "outcome"],
        )
        refusals = CounterMetricFamily(
            "truthgpt_key_refusals",
            "Requests that were refused with 429, by the limit or the queue that was full.",
            labels=["key", "reason"],
        )
        for key, found in self._of_keys.items():
            for outcome, number in found.outcomes.items():
                requests.add_metric([key, outcome], number)
            for reason, number in found.refusals.items():
                refusals.add_metric([key, reason], number)
        yield requests
        yield refusals
        counters: dict[str, CounterMetricFamily] = {}
        for at, (name, kind, text) in enumerate(_COUNTS):
            labels = ["key", "kind"] if kind else ["key"]
            metric = counters.setdefault(name, CounterMetricFamily(name, text, labels=labels))
            for key, found in self._of_keys.items():
                metric.add_metric([key, kind] if kind else [key], found.counts[at])
        yield from counters.values()
        for at, (name, text, _) in enumerate(_TIMES):
            times = HistogramMetricFamily(name, text, labels=["key"])
            for key, found in self._of_keys.items():
                times.add_metric([key], found.times[at].buckets(), found.times[at].total)
            yield times


class _LimitMetrics(Collector):
    """Shows the limits of the keys that have been met, to compare with what they use."""

    def __init__(self, met: Mapping[str, object], limits: Callable[[], Mapping[str, Limits]]):
        self._met = met
        self._limits = limits

    def collect(self) -> Iterator[Metric]:
        """Yields the metric as it is now."""
        metric = GaugeMetricFamily(
            "truthgpt_key_limit",
            "What a key may use in a minute, or at the same time (concurrent).",
            labels=["key", "limit"],
        )
        for key, limits in self._limits().items():
            for name, field in _LIMITS.items():
                limit = getattr(limits, field)
                if limit is not None and key in self._met:
                    metric.add_metric([key, name], limit)
        yield metric


class _StoreMetrics(Collector):
    """Shows what counts the limits of keys for all machines."""

    def __init__(self, store: RedisCounters) -> None:
        self._store = store

    def collect(self) -> Iterator[Metric]:
        """Yields the metrics as they are now."""
        yield GaugeMetricFamily(
            "truthgpt_quota_store_up",
            "Whether limits are counted in quota_store (1), or by each machine as it is away (0).",
            value=int(self._store.is_up),
        )
        yield CounterMetricFamily(
            "truthgpt_quota_store_missed",
            "Counts that were left to the machine, as quota_store was away or too slow.",
            value=self._store.num_missed,
        )


class _StateMetrics(Collector):
    """Shows what is well."""

    def __init__(self, states: Sequence[State]) -> None:
        self._states = states

    def collect(self) -> Iterator[Metric]:
        """Yields the metrics as they are now."""
        for state in self._states:
            yield GaugeMetricFamily(state.name, state.text, value=int(state.is_well()))
