"""Results as JSON with the keys of `vllm bench serve`, so that either program reads the other's.

What vLLM has no key for is below `truthgpt_bench`. A file holds one object a line, as vLLM's
`--append-result` writes; a file of one object or a list of them is read too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from truthgpt_serve.bench.load import Load, Run
from truthgpt_serve.bench.metrics import Recorder
from truthgpt_serve.bench.target import BenchError

OWN = "truthgpt_bench"
"""The key of what vLLM's format has no place for."""
BACKENDS = {
    "chat": "openai-chat",
    "completions": "openai",
    "embeddings": "openai-embeddings",
    "images": "openai-images",
}
"""The name that vLLM gives an endpoint; for images it has none."""
_NAMES = {
    "completed": "done",
    "request_throughput": "requests/s",
    "request_goodput": "good requests/s",
    "output_throughput": "output tokens/s",
    "total_token_throughput": "all tokens/s",
    "ttft": "TTFT",
    "tpot": "TPOT",
    "itl": "ITL",
    "e2el": "E2E",
}
_MAX_SECONDS = 600
"""Points of a drawn course over time; of a longer run several seconds share one."""
TIMES = ("ttft", "tpot", "itl", "e2el")
"""Quantities whose statistics are reported, in milliseconds."""


def build_result(
    recorder: Recorder, run: Run, load: Load, about: Mapping[str, Any], percents: Sequence[float]
) -> dict[str, Any]:
    """Returns the result of one measurement.

    Args:
        recorder: The outcomes.
        run: The measurement.
        load: What was asked for.
        about: `endpoint`, `label`, `model`, `url`, `burstiness`; further keys go below `OWN`.
        percents: The percentiles to report.
    """
    backend = BACKENDS[about["endpoint"]]
    num_sent = recorder.completed + recorder.failed
    result: dict[str, Any] = {
        "date": datetime.now().strftime("%Y%m%d-%H%M%S"),
        "endpoint_type": backend,
        "backend": backend,
        "label": about["label"],
        "model_id": about["model"],
        "tokenizer_id": None,
        "num_prompts": load.num_requests if load.num_requests is not None else num_sent,
        "request_rate": "inf" if load.rate is None else load.rate,
        "burstiness": "inf" if about["burstiness"] == math.inf else about["burstiness"],
        "max_concurrency": load.concurrency,
    }
    result |= recorder.figures(run.duration_s, percents)
    if recorder.detailed:
        result |= _detailed(recorder)
    skipped = ("endpoint", "label", "model", "burstiness")
    own = {name: value for name, value in about.items() if name not in skipped}
    result[OWN] = own | _own(recorder, run)
    return result


def _detailed(recorder: Recorder) -> dict[str, Any]:
    kept = recorder.detailed
    return {
        "input_lens": [outcome.input_tokens for outcome in kept],
        "output_lens": [outcome.output_tokens if outcome.ok else 0 for outcome in kept],
        "ttfts": [outcome.ttft_s for outcome in kept],
        "itls": [list(outcome.itls_s) for outcome in kept],
        "latencies": [outcome.latency_s for outcome in kept],
        "start_times": [outcome.start_s for outcome in kept],
        "queue_times": [outcome.queue_s for outcome in kept],
        "generated_texts": [outcome.text for outcome in kept],
        "errors": [
            f"{outcome.error}: {outcome.detail}" if outcome.error else "" for outcome in kept
        ],
    }


def _own(recorder: Recorder, run: Run) -> dict[str, Any]:
    counted = recorder.counted_by_chunks
    counts = {0: "usage", recorder.completed: "chunks"}
    errors = {
        kind: {"count": count, "examples": dict(recorder.examples[kind])}
        for kind, count in recorder.errors.most_common()
    }
    return {
        "token_counts": counts.get(counted, "usage and chunks"),
        "num_chunks": recorder.num_chunks,
        "errors": errors,
        "slo_ms": recorder.slo_ms,
        "num_good": recorder.good,
        "num_interrupted": run.num_interrupted,
        "num_not_kept": recorder.not_kept,
        "sampled": [name for name, series in recorder.series.items() if series.sampled],
        "client_cpu_share": round(run.cpu_share, 4),
        "send_lag_p99_ms": round(run.lag.statistics([99], 1000)["p99"], 3),
        "queue_p99_ms": round(recorder.series["queue"].statistics([99], 1000)["p99"], 3),
        "quantiles_ms": {name: recorder.series[name].quantiles(1000) for name in TIMES},
        "course": _course(recorder),
    }


def _course(recorder: Recorder) -> dict[str, Any]:
    """Returns events and requests in flight over time, in steps of whole seconds."""
    num_s = max(recorder.requests_per_second, default=-1) + 1
    step_s = max(1, -(-num_s // _MAX_SECONDS))
    starts = range(0, num_s, step_s)

    def mean(per_second: Mapping[int, int]) -> list[float]:
        return [
            round(sum(per_second.get(start + at, 0) for at in range(step_s)) / step_s, 2)
            for start in starts
        ]

    return {
        "step_s": step_s,
        "chunks_per_s": mean(recorder.tokens_per_second),
        "requests": mean(recorder.requests_per_second),
    }


def extras(result: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns what a result has beyond vLLM's keys; nothing of one that vLLM made."""
    found = result.get(OWN)
    return found if isinstance(found, Mapping) else {}


def figure_name(key: str) -> str:
    """Returns a figure's name for people: `TTFT median, ms` for `median_ttft_ms`."""
    if key in _NAMES or not key.endswith("_ms"):
        return _NAMES.get(key, key)
    word, _, name = key.removesuffix("_ms").partition("_")
    return f"{_NAMES.get(name, name)} {word}, ms"


def encode_results(results: Sequence[Mapping[str, Any]]) -> str:
    """Returns one JSON object a line."""
    return "".join(json.dumps(result, ensure_ascii=False) + "\n" for result in results)


def read_results(path: Path) -> list[dict[str, Any]]:
    """Reads the results of `truthgpt bench` or `vllm bench serve`.

    Raises:
        BenchError: The file cannot be read or holds something else.
    """
    try:
        text = path.read_text(encoding="utf-8")
        values = _decode_all(text)
    except (OSError, ValueError, RecursionError) as error:
        raise BenchError(f"{path} cannot be read: {error}") from error
    for value in values:
        if not isinstance(value, dict) or "request_throughput" not in value:
            raise BenchError(f"{path} holds no result of `truthgpt bench` or `vllm bench serve`")
    return values


def _decode_all(text: str) -> list[Any]:
    """Returns all JSON values of a text; the items of a list count one by one."""
    decoder, values, at = json.JSONDecoder(), [], 0
    text = text.strip()
    while at < len(text):
        value, at = decoder.raw_decode(text, at)
        if isinstance(value, dict) and isinstance(value.get("results"), list):
            value = value["results"]  # what `truthgpt bench --json` prints
        values += value if isinstance(value, list) else [value]
        while at < len(text) and text[at].isspace():
            at += 1
    if not values:
        raise ValueError("it is empty")
    return values
