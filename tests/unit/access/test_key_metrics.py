"""Metrics of keys, read again by Prometheus' own parser."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from truthgpt_serve.access.counting.charges import Charge
from truthgpt_serve.access.counting.redis_counters import RedisCounters
from truthgpt_serve.access.identity import Limits
from truthgpt_serve.access.key_metrics import KeyMetrics, keys_state, usage_state
from truthgpt_serve.access.meter import Ended
from truthgpt_serve.usage.counted import Usage


def samples(metrics: KeyMetrics) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *(sample.labels[name] for name in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(metrics.page())
        for sample in family.samples
        if not sample.name.endswith(("_created", "_bucket"))
    }


def test_what_requests_did() -> None:
    limits = {
        "a": Limits(requests_per_minute=60, max_concurrent=2),
        "away": Limits(max_concurrent=9),
    }
    metrics = KeyMetrics(limits=lambda: limits)
    text = Usage(prompt_tokens=100, cached_tokens=64, completion_tokens=11)
    metrics.report(Ended("a", text, 200, "ok", 0.5, 1.5))
    metrics.report(Ended("a", Usage(prompt_tokens=7), 200, "cancelled", 0.5, 1.5))
    metrics.report(Ended('b"\n', Usage(images=2, megapixel_steps=60.5), 200, "ok", 2.0, 2.0))
    metrics.report(Ended("b", Usage(audio_s=2.5), 200, "ok", 1.0, 1.0))
    metrics.report(Ended("b", Usage(), 429, "refused", None, 0.0))
    for reason in ("tokens", "tokens", "queue"):
        metrics.report(Ended("a", Usage(refusal=reason), 429, "refused", None, 0.0))
    found = samples(metrics)
    assert found["truthgpt_key_requests_total", "a", "ok"] == 1
    assert found["truthgpt_key_requests_total", "a", "cancelled"] == 1
    assert found["truthgpt_key_requests_total", "b", "refused"] == 1
    refusals = {name[1:]: value for name, value in found.items() if "refusals" in name[0]}
    assert refusals == {("b", "model"): 1, ("a", "tokens"): 2, ("a", "queue"): 1}
    shown = {name[1:]: value for name, value in found.items() if name[0] == "truthgpt_key_limit"}
    assert shown == {("a", "requests"): 60, ("a", "concurrent"): 2}  # of the keys that were here
    assert found["truthgpt_key_tokens_total", "a", "prompt"] == 107
    assert found["truthgpt_key_tokens_total", "a", "cached"] == 64
    assert found["truthgpt_key_tokens_total", "a", "completion"] == 11
    assert found["truthgpt_key_images_total", 'b"\n'] == 2
    assert found["truthgpt_key_image_megapixel_steps_total", 'b"\n'] == 60.5
    assert found["truthgpt_key_audio_seconds_total", "b"] == 2.5
    assert found["truthgpt_key_first_byte_seconds_sum", "a"] == 0.5
    assert found["truthgpt_key_request_seconds_count", "a"] == 1
    assert found["truthgpt_key_output_token_seconds_sum", "a"] == pytest.approx(0.1)
    assert found["truthgpt_key_output_token_seconds_count", "b"] == 0


def test_what_is_well_and_what_is_not() -> None:
    are_well = [True, False]
    states = [keys_state(lambda: are_well[0]), usage_state(lambda: are_well[1])]
    metrics = KeyMetrics(states=states)
    assert samples(metrics) == {("truthgpt_keys_current",): 1, ("truthgpt_usage_kept",): 0}
    are_well.reverse()
    assert samples(metrics) == {("truthgpt_keys_current",): 0, ("truthgpt_usage_kept",): 1}


async def test_whether_the_store_answers(tmp_path: Path) -> None:
    assert "truthgpt_quota_store" not in KeyMetrics().page()
    store = RedisCounters(f"unix://{tmp_path}/none.sock")
    metrics = KeyMetrics(store)
    assert samples(metrics)["truthgpt_quota_store_up",] == 1
    assert await store.take_all([Charge("team", 1, 5, None)]) is None
    found = samples(metrics)
    assert found["truthgpt_quota_store_up",] == 0
    assert found["truthgpt_quota_store_missed_total",] == 1
    store.close()
