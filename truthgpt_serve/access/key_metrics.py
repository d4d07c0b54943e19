"""What the requests of each key did at one replica, as metrics in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from truthgpt_serve.access.identity import Limits
from truthgpt_serve.access.meter import OUTCOMES, Ended
from truthgpt_serve.access.redis_counters import RedisCounters

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_LIMITS = {
    "requests": "requests_per_minute",
    "tokens": "tokens_per_minute",
    "image-megapixel-steps": "image_megapixel_steps_per_minute",
    "concurrent": "max_concurrent",
}
"""The fields of `Limits` by their names in metrics."""
_UNKNOWN = "model"
"""The reason of a refusal that is the model's own."""
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


@dataclass(frozen=True, slots=True)
class _OfKey:
    """The metrics of one key, which are looked up once: that takes longer than to count."""

    outcomes: dict[str, Counter]
    prompt: Counter
    cached: Counter
    completion: Counter
    queued: Histogram
    first: Histogram
    whole: Histogram
    token: Histogram


class KeyMetrics:
    """Counts by the names of keys; a replica has them for the keys that it has met.

    Args:
        store: What counts for all machines, whose state is shown too.
        limits: Returns the limits of all keys by their names, as they are now.
    """

    def __init__(
        self,
        store: RedisCounters | None = None,
        limits: Callable[[], Mapping[str, Limits]] = dict,
    ) -> None:
        self._of_keys: dict[str, _OfKey] = {}
        registry = self._registry = CollectorRegistry()
        registry.register(_LimitMetrics(self._of_keys, limits))
        if store is not None:
            registry.register(_StoreMetrics(store))
        self._requests = Counter(
            "truthgpt_key_requests",
            "Requests that have ended: ok, error, cancelled by their client, or refused (429).",
            ["key", "outcome"],
            registry=registry,
        )
        self._refusals = Counter(
            "truthgpt_key_refusals",
            "Requests that were refused with 429, by the limit or the queue that was full.",
            ["key", "reason"],
            registry=registry,
        )
        self._tokens = Counter(
            "truthgpt_key_tokens",
            "Tokens: prompt, those of them from the prefix cache (cached), and completion.",
            ["key", "kind"],
            registry=registry,
        )
        self._images = Counter(
            "truthgpt_key_images", "Images that were made.", ["key"], registry=registry
        )
        self._steps = Counter(
            "truthgpt_key_image_megapixel_steps",
            "Denoising steps times megapixels of these images.",
            ["key"],
            registry=registry,
        )
        self._audio = Counter(
            "truthgpt_key_audio_seconds", "Seconds of audio.", ["key"], registry=registry
        )
        self._first = self._seconds(
            "first_byte",
            "From a request's arrival at the replica to the first piece of its answer.",
        )
        self._whole = self._seconds(
            "request", "From a request's arrival at the replica to the last piece of its answer."
        )
        self._queued = self._seconds(
            "queue", "How long a request waited for its turn at the replica."
        )
        self._token = self._seconds(
            "output_token",
            "Mean time of each token after the first piece of an answer that came in pieces.",
            _TOKEN_SECONDS,
        )

    def _seconds(self, name: str, what: str, buckets: Sequence[float] = _SECONDS) -> Histogram:
        return Histogram(
            f"truthgpt_key_{name}_seconds", what, ["key"], buckets=buckets, registry=self._registry
        )

    def report(self, ended: Ended) -> None:
        """Counts a request that has ended."""
        of_key = self._of_keys.get(ended.key)
        if of_key is None:
            of_key = self._of_keys[ended.key] = self._begin(ended.key)
        usage = ended.usage
        of_key.outcomes[ended.outcome].inc()
        if ended.outcome == "refused":
            self._refusals.labels(ended.key, usage.refusal or _UNKNOWN).inc()
        if usage.prompt_tokens:
            of_key.prompt.inc(usage.prompt_tokens)
        if usage.cached_tokens:
            of_key.cached.inc(usage.cached_tokens)
        if usage.completion_tokens:
            of_key.completion.inc(usage.completion_tokens)
        if usage.images:
            self._images.labels(ended.key).inc(usage.images)
            self._steps.labels(ended.key).inc(usage.megapixel_steps)
        if usage.audio_s:
            self._audio.labels(ended.key).inc(usage.audio_s)
        if ended.outcome == "ok" and ended.first_s is not None:
            of_key.queued.observe(usage.queued_s)
            of_key.first.observe(ended.first_s)
            of_key.whole.observe(ended.whole_s)
            between_s, number = ended.whole_s - ended.first_s, usage.completion_tokens
            if between_s > 0 and number > 1:
                of_key.token.observe(between_s / (number - 1))

    def _begin(self, key: str) -> _OfKey:
        tokens = self._tokens
        return _OfKey(
            outcomes={outcome: self._requests.labels(key, outcome) for outcome in OUTCOMES},
            prompt=tokens.labels(key, "prompt"),
            cached=tokens.labels(key, "cached"),
            completion=tokens.labels(key, "completion"),
            queued=self._queued.labels(key),
            first=self._first.labels(key),
            whole=self._whole.labels(key),
            token=self._token.labels(key),
        )

    def page(self) -> str:
        """Returns the metrics, in version 0.0.4 of the text format."""
        return generate_latest(self._registry).decode()


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
