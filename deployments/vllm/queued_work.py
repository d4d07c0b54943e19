"""The work that waits in vLLM's engine, from its own statistics in this process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry

WAITING = "vllm:num_requests_waiting"
KV_USAGE = "vllm:kv_cache_usage_perc"
PROMPT_TOKENS = "vllm:prompt_tokens_total"
_NEW_SHARE = 0.3
"""How much the newest measurement counts in the mean."""


class QueuedWork:
    """Says how long a request waits for the engine: prompt tokens before it, by their speed.

    The speed is measured only while requests wait, so it is what the engine can do then, whether
    computing, a full KV cache or a full batch holds it up.

    Args:
        count_tokens: Returns the prompt tokens of requests of which no token has come yet.
        count_waiting: Returns how many texts are not in the engine yet, and their tokens.
        registry: Where vLLM's metrics are.
        clock: The time in seconds, which only goes forward.
    """

    def __init__(
        self,
        count_tokens: Callable[[], int],
        count_waiting: Callable[[], tuple[int, int]],
        registry: CollectorRegistry = REGISTRY,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._count_tokens = count_tokens
        self._count_waiting = count_waiting
        self._registry = registry
        self._clock = clock
        self._before: tuple[float, float] | None = None
        self._speed = 0.0

    def read(self) -> dict[str, float]:
        """Returns `queue_s`, `waiting` requests and `busy`, the share of the KV cache in use.

        All are 0 where the engine keeps no statistics (`disable_log_stats`).
        """
        names = (WAITING, KV_USAGE, PROMPT_TOKENS)
        values = dict.fromkeys(names, 0.0)
        for metric in self._registry.restricted_registry(names).collect():
            for sample in metric.samples:
                if sample.name in values:  # of several engines in one process, the sum
                    values[sample.name] += sample.value
        held, held_tokens = self._count_waiting()
        waiting = values[WAITING] + held
        self._measure(waiting, values[PROMPT_TOKENS])
        queued = self._count_tokens() + held_tokens if waiting and self._speed else 0
        return {
            "queue_s": queued / self._speed if queued else 0.0,
            "waiting": waiting,
            "busy": min(1.0, values[KV_USAGE]),
        }

    def _measure(self, waiting: float, done: float) -> None:
        now_s, before = self._clock(), self._before
        self._before = (now_s, done) if waiting else None
        if before is None or now_s <= before[0] or done <= before[1]:
            return
        speed = (done - before[1]) / (now_s - before[0])
        self._speed = speed if not self._speed else self._speed + _NEW_SHARE * (speed - self._speed)


def token_counter(client: Any) -> Callable[[], int]:
    """Returns what counts the prompt tokens that wait at an engine client; 0 if it cannot say."""
    processor = getattr(client, "output_processor", None)
    count: Callable[[], int] | None = getattr(processor, "get_num_queued_tokens", None)
    return count if callable(count) else _none


def count_held(turns: Iterable[Any]) -> tuple[int, int]:
    """Returns how many texts are kept from the engine for others, and their tokens.

    Args:
        turns: What keeps them, with `waiting`.
    """
    waiting = [each.waiting for each in turns]
    return sum(texts for texts, _ in waiting), sum(tokens for _, tokens in waiting)


def _none() -> int:
    return 0
