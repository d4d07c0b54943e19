"""The wait for vLLM's engine, from metrics as it registers them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge

from deployments.vllm.queued_work import QueuedWork, count_held, token_counter


class Engine:
    """vLLM's metrics by their names and labels, and the prompt tokens of its output processor."""

    now_s = 10.0
    tokens = 0

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        labels = ["model_name", "engine"]
        kinds = ((Gauge, "num_requests_waiting"), (Gauge, "kv_cache_usage_perc"))
        waiting, usage = (
            kind(f"vllm:{name}", name, labels, registry=self.registry) for kind, name in kinds
        )
        done = Counter("vllm:prompt_tokens", "Tokens.", labels, registry=self.registry)
        self.waiting, self.usage = waiting.labels("m", "0"), usage.labels("m", "0")
        self.done = done.labels("m", "0")
        self.held = (0, 0)
        self.work = QueuedWork(
            lambda: self.tokens, lambda: self.held, self.registry, lambda: self.now_s
        )

    def step(self, seconds: float, tokens: int) -> None:
        self.now_s += seconds
        self.done.inc(tokens)


def test_prompt_tokens_by_the_speed_while_requests_wait() -> None:
    engine = Engine()
    engine.step(2, 100_000)  # nobody waits: that says nothing of its speed
    assert engine.work.read() == {"queue_s": 0, "waiting": 0, "busy": 0}
    engine.waiting.set(3)
    engine.usage.set(0.95)
    engine.tokens = 12_000
    assert engine.work.read() == {"queue_s": 0, "waiting": 3, "busy": 0.95}  # no speed is known
    engine.step(2, 4000)
    assert engine.work.read()["queue_s"] == 6
    engine.step(2, 2000)  # it slows down: 2000 tokens a second, then 1000
    assert engine.work.read()["queue_s"] == pytest.approx(12_000 / 1700)
    engine.step(2, 0)  # none was taken in: a long prompt is under way
    assert engine.work.read()["queue_s"] == pytest.approx(12_000 / 1700)
    engine.waiting.set(0)
    assert engine.work.read() == {"queue_s": 0, "waiting": 0, "busy": 0.95}


def test_without_statistics_there_is_nothing() -> None:
    count_tokens = token_counter(SimpleNamespace())
    work = QueuedWork(count_tokens, lambda: (0, 0), CollectorRegistry(), lambda: 1.0)
    assert work.read() == {"queue_s": 0, "waiting": 0, "busy": 0}


def test_texts_that_are_kept_from_the_engine_wait_too() -> None:
    engine = Engine()
    engine.held = count_held(
        [SimpleNamespace(waiting=(3, 1500)), SimpleNamespace(waiting=(2, 500))]
    )
    assert engine.work.read() == {"queue_s": 0, "waiting": 5, "busy": 0}  # no speed is known
    engine.tokens = 1000
    engine.step(2, 3000)
    assert engine.work.read() == {"queue_s": 2, "waiting": 5, "busy": 0}
