from __future__ import annotations

import json
import random
from array import array
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from tests.support.bench_server import chunk, event_bytes, usage_event
from truthgpt_serve.bench import metrics
from truthgpt_serve.bench.client import StreamMeter
from truthgpt_serve.bench.metrics import Recorder, Series, percentile
from truthgpt_serve.bench.outcome import Outcome
from truthgpt_serve.bench.result import read_results

VLLM = Path(__file__).parent / "files" / "vllm.json"
"""What `vllm bench serve --save-detailed` wrote of a server that streams at a fixed pace."""


class Clock:
    """Returns the times given, one after another."""

    def __init__(self, times_s: Sequence[float]) -> None:
        self._times_s = list(times_s)

    def __call__(self) -> float:
        return self._times_s.pop(0)


def take(pieces: Sequence[bytes], times_s: Sequence[float], start_s: float = 10.0) -> Outcome:
    outcome = Outcome(start_s=start_s, input_tokens=1)
    meter = StreamMeter(outcome, Clock(times_s), keep_text=True)
    for piece in pieces:
        meter.feed(piece)
    meter.finish()
    return outcome


def test_a_streams_times_are_those_of_its_events_with_a_choice() -> None:
    events = [chunk(""), chunk("one "), chunk("two", "stop"), usage_event(4, 2)]
    pieces = [event_bytes(event) for event in events] + [b"data: [DONE]\n\n"]
    outcome = take(pieces, [10.5, 10.6, 10.8, 11.0, 11.1])
    assert outcome.ok
    assert outcome.ttft_s == pytest.approx(0.5)
    assert list(outcome.itls_s) == pytest.approx([0.1, 0.2])
    assert outcome.latency_s == pytest.approx(0.8), "the event with usage does not count"
    assert outcome.tpot_s == pytest.approx(0.3)
    assert (outcome.input_tokens, outcome.output_tokens, outcome.text) == (4, 2, "one two")


def test_events_are_found_in_any_pieces_and_pings_do_not_count() -> None:
    stream = b": ping\n\n" + event_bytes(chunk("é")) + event_bytes(chunk("b", "stop"))
    stream = stream.replace(b"\n", b"\r\n") + b"data: [DONE]\n\n"
    for size in (1, 7, len(stream)):
        pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
        outcome = take(pieces, [10.1, 10.2, 10.3])
        assert (outcome.text, len(outcome.itls_s), outcome.error) == ("éb", 1, "")


def test_without_usage_chunks_with_text_are_counted() -> None:
    events = [chunk(""), chunk("a"), chunk("b"), chunk("", "stop")]
    outcome = take([event_bytes(event) for event in events], [10.1, 10.2, 10.3, 10.4])
    assert (outcome.output_tokens, outcome.has_usage) == (2, False)


@pytest.mark.parametrize(
    ("pieces", "kind"),
    [
        ([b"data: [DONE]\n\n"], "empty stream"),
        ([event_bytes(chunk("a"))], "broken stream"),
        ([b'data: {"choices": [\n\n'], "invalid event"),
        ([b"data: \xff\n\n"], "invalid event"),
        ([event_bytes({"error": {"message": "died"}})], "error event"),
        ([b""], "empty stream"),
    ],
)
def test_a_stream_that_is_not_whole_is_a_failure_of_its_kind(
    pieces: list[bytes], kind: str
) -> None:
    assert take(pieces, [10.1, 10.2]).error == kind


def outcomes_of(path: Path) -> list[Outcome]:
    """Returns the requests of a detailed result."""
    result = json.loads(path.read_text())
    found = []
    for at, start_s in enumerate(result["start_times"]):
        itls_s = array("d", result["itls"][at])
        outcome = Outcome(start_s=start_s, ttft_s=result["ttfts"][at], itls_s=itls_s)
        outcome.latency_s = result["latencies"][at]
        outcome.input_tokens = result["input_lens"][at]
        outcome.output_tokens, outcome.has_usage = result["output_lens"][at], True
        found.append(outcome)
    return found


def test_figures_equal_those_that_vllm_reckons_of_the_same_requests() -> None:
    theirs = read_results(VLLM)[0]
    recorder = Recorder({"ttft": 3, "tpot": 4, "e2el": 60})
    for outcome in outcomes_of(VLLM):
        recorder.add(outcome)
    ours = recorder.figures(theirs["duration"], [90, 99])
    assert 0 < recorder.good < recorder.completed, "the limits must tell requests apart"
    compared = {key: theirs[key] for key in ours}
    assert ours == pytest.approx(compared, rel=1e-9)


def test_percentiles_are_interpolated() -> None:
    assert percentile([1.0, 2.0, 3.0, 4.0], 50) == 2.5
    assert percentile([1.0, 2.0, 3.0, 4.0], 90) == pytest.approx(3.7)
    assert percentile([5.0], 99) == 5.0
    assert percentile([], 99) == 0.0


def test_a_long_series_keeps_a_sample_and_an_exact_mean() -> None:
    series, rng = Series(max_samples=2000), random.Random(3)
    values = [rng.uniform(0, 100) for _ in range(50_000)]
    series.extend(values)
    found = series.statistics([90])
    assert series.sampled
    assert len(series.ordered()) == 2000
    assert found["mean"] == pytest.approx(sum(values) / len(values))
    assert found["p90"] == pytest.approx(90, abs=3)
    quantiles = series.quantiles()
    assert len(quantiles) == 101
    assert all(low <= high for low, high in pairwise(quantiles))


def test_what_is_kept_of_failures_and_requests_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "MAX_DETAILED", 10)
    recorder = Recorder(keep=True)
    for at in range(100):
        outcome = Outcome(start_s=float(at))
        outcome.fail("http 500", f"{at} {'x' * 1000}")
        recorder.add(outcome)
    assert (recorder.failed, recorder.errors["http 500"]) == (100, 100)
    assert len(recorder.examples["http 500"]) == metrics.MAX_EXAMPLES
    assert (len(recorder.detailed), recorder.not_kept) == (10, 90)
    figures = recorder.figures(1.0, [99])
    assert (figures["completed"], figures["mean_ttft_ms"], figures["p99_e2el_ms"]) == (0, 0, 0)


def test_goodput_counts_requests_within_all_limits() -> None:
    recorder = Recorder({"ttft": 100, "e2el": 1000})
    for ttft_s, latency_s in ((0.1, 1.0), (0.2, 0.5), (0.05, 1.5), (0.05, 0.5)):
        recorder.add(Outcome(ttft_s=ttft_s, latency_s=latency_s, output_tokens=1, has_usage=True))
    assert recorder.figures(2.0, [99])["request_goodput"] == 1.0
    assert Recorder().figures(1.0, [99])["request_goodput"] is None
