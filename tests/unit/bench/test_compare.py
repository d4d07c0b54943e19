from __future__ import annotations

import io
import json
import math
from typing import Any

import pytest
from rich.console import Console as RichConsole

from truthgpt_serve.bench.compare import compare, ordered_sides
from truthgpt_serve.bench.console import ratio_table


def test_ratios_are_medians_over_pairs() -> None:
    def result(side: int, pair: int, value: float) -> dict[str, Any]:
        return {"mean_ttft_ms": value,
                "truthgpt_bench": {"load": "x", "side": side, "pair": pair}}  # fmt: skip

    values = [(2.0, 1.0), (9.0, 3.0), (10.0, 1.0)]
    results = [
        result(side, pair, value)
        for pair, pair_values in enumerate(values)
        for side, value in enumerate(pair_values)
    ]
    results.append(result(0, 3, 5.0))  # its pair was interrupted
    results += [{**result(side, 4, 1.0), "request_goodput": (None, 3.0)[side]} for side in (0, 1)]
    results[-1]["mean_ttft_ms"] = None
    (ratio,) = compare(results)
    assert (ratio.ratio, ratio.low, ratio.high, ratio.num_pairs) == (3.0, 2.0, 10.0, 3)
    assert (ratio.value, ratio.against) == (9.0, 1.0)
    assert [ordered_sides(pair, 2) for pair in range(3)] == [[0, 1], [1, 0], [0, 1]]


@pytest.mark.parametrize(
    ("rates", "ratio", "low", "high", "pairs"),
    [
        ([(0.0, 4.0), (8.0, 4.0), (4.0, 4.0)], 1.0, 0.0, 2.0, "3"),
        ([(0.0, 4.0)] * 3, 0.0, 0.0, 0.0, "3"),
        ([(4.0, 0.0), (4.0, 4.0), (4.0, 0.0)], math.inf, 1.0, math.inf, "3"),
        ([(0.0, 0.0), (4.0, 4.0), (4.0, 2.0)], 1.5, 1.0, 2.0, "2 of 3"),
    ],
)
def test_a_side_that_failed_is_compared_too(
    rates: list[tuple[float, float]], ratio: float, low: float, high: float, pairs: str
) -> None:
    """Its throughput is 0, which must not leave the pairs in which it did well alone."""
    results: list[dict[str, Any]] = [
        {
            "request_throughput": rate,
            "mean_ttft_ms": 7.0 if rate else 0.0,
            "truthgpt_bench": {"load": "x", "side": side, "pair": pair},
        }
        for pair, both in enumerate(rates)
        for side, rate in enumerate(both)
    ]
    found = {entry.figure: entry for entry in compare(results)}
    rate = found["request_throughput"]
    assert (rate.ratio, rate.low, rate.high, rate.pairs) == (ratio, low, high, pairs)
    shown = json.dumps([entry.to_json() for entry in found.values()], allow_nan=False)
    assert ("null" in shown) is (high == math.inf)
    num_whole = sum(all(both) for both in rates)
    assert ("mean_ttft_ms" in found) is (num_whole > 0)
    if num_whole:
        assert found["mean_ttft_ms"].pairs == f"{num_whole} of 3"
        out = io.StringIO()
        RichConsole(file=out, width=200).print(ratio_table(list(found.values())))
        assert f"{num_whole} of 3" in out.getvalue()
