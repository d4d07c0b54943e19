from __future__ import annotations

import statistics
from itertools import islice, pairwise
from pathlib import Path

import pytest

from truthgpt_serve.bench.arrivals import arrival_times, read_trace
from truthgpt_serve.bench.prompts import RandomPrompts
from truthgpt_serve.bench.target import BenchError


def test_arrivals_are_a_poisson_process_and_the_same_for_a_seed() -> None:
    times_s = list(islice(arrival_times(50.0, 1.0, None, "7"), 20_000))
    gaps_s = [later - earlier for earlier, later in pairwise(times_s)]
    assert statistics.fmean(gaps_s) == pytest.approx(1 / 50, rel=0.03)
    assert statistics.pstdev(gaps_s) == pytest.approx(1 / 50, rel=0.05), "as exponential gaps have"
    shorter = sum(gap_s < 0.01 for gap_s in gaps_s) / len(gaps_s)
    assert shorter == pytest.approx(0.3935, abs=0.02), "1 - exp(-1/2)"
    assert times_s == list(islice(arrival_times(50.0, 1.0, None, "7"), 20_000))
    assert times_s != list(islice(arrival_times(50.0, 1.0, None, "8"), 20_000))


@pytest.mark.parametrize(("burstiness", "spread"), [(0.25, 2.0), (4.0, 0.5), (float("inf"), 0.0)])
def test_burstiness_spreads_the_gaps_as_a_gamma_distribution(
    burstiness: float, spread: float
) -> None:
    times_s = list(islice(arrival_times(10.0, burstiness, None, "0"), 20_000))
    gaps_s = [later - earlier for earlier, later in pairwise(times_s)]
    mean_s = statistics.fmean(gaps_s)
    assert mean_s == pytest.approx(0.1, rel=0.05)
    assert statistics.pstdev(gaps_s) / mean_s == pytest.approx(spread, rel=0.05, abs=1e-6)


def test_a_number_of_arrivals_ends_when_the_rate_says() -> None:
    times_s = list(arrival_times(4.0, 1.0, 10, "0"))
    assert len(times_s) == 10
    assert times_s[-1] == pytest.approx(2.5)


@pytest.mark.parametrize(
    ("name", "lines", "offsets_s"),
    [
        ("own.jsonl", ['{"offset": 1, "prompt": "hi", "output_tokens": 2}',
                       '{"offset": 3.5, "input_tokens": 4}'], [0, 2.5]),
        ("mooncake.jsonl", ['{"timestamp": 3000, "input_length": 6, "output_length": 2}',
                            '{"timestamp": 1000, "input_length": 6, "output_length": 1}'], [0, 2]),
        ("azure.csv", ["TIMESTAMP,ContextTokens,GeneratedTokens",
                       "2023-11-16 18:17:03.9799600,4808,10",
                       "2023-11-16 18:17:04.4799600,3180,8"], [0, 0.5]),
        ("burst.csv", ["Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type",
                       "5,ChatGPT,472,18,490,Conversation log",
                       "45,ChatGPT,1087,230,1317,Conversation log"], [0, 40]),
    ],
)  # fmt: skip
def test_traces_of_each_form_are_read(
    tmp_path: Path, name: str, lines: list[str], offsets_s: list[float]
) -> None:
    path = tmp_path / name
    path.write_text("\n".join(lines) + "\n")
    found = read_trace(path, RandomPrompts(), speed=1.0, seed="0")
    assert [request.offset_s for request in found] == pytest.approx(offsets_s)
    faster = read_trace(path, RandomPrompts(), speed=4.0, seed="0")
    assert faster[1].offset_s == pytest.approx(offsets_s[1] / 4)
    for request in found:
        assert isinstance(request.prompt, str)
        assert len(request.prompt.split()) == request.input_len


@pytest.mark.parametrize(
    "line",
    ["{}", "[1]", "{", '{"offset": "x", "prompt": "a"}', '{"offset": 1}',
     '{"offset": 1, "input_tokens": "many"}', '{"offset": NaN, "prompt": "a"}',
     '{"timestamp": 1e999, "prompt": "a"}', '{"offset": 1' + "0" * 400 + ', "prompt": "a"}',
     '{"offset": 1, "input_tokens": -5}', '{"offset": 1, "input_tokens": 1000001}',
     '{"offset": 1, "input_tokens": 1e999}', '{"offset": 1, "prompt": "a", "output_tokens": -1}'],
)  # fmt: skip
def test_a_bad_trace_is_named_with_its_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text('{"offset": 1, "prompt": "a"}\n' + line + "\n")
    with pytest.raises(BenchError, match=r"trace\.jsonl"):
        read_trace(path, RandomPrompts(), speed=1, seed="0")
