"""When requests are sent: at a rate with random gaps, or as a trace file says."""

from __future__ import annotations

import csv
import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from truthgpt_serve.bench.outcome import Request
from truthgpt_serve.bench.prompts import MAX_ROWS, RandomPrompts, last_text, read_rows
from truthgpt_serve.bench.target import BenchError

MOONCAKE_BLOCK = 512
"""Tokens that one id in `hash_ids` of a Mooncake trace stands for."""
MAX_INPUT_LEN = 1_000_000
"""The longest prompt of a row, as of `--input-len`: longer ones fill the memory."""
_INPUT = ("input_tokens", "input_length", "ContextTokens", "Request tokens")
_OUTPUT = ("output_tokens", "output_length", "GeneratedTokens", "Response tokens")


def arrival_times(
    rate: float, burstiness: float, num_requests: int | None, seed: str
) -> Iterator[float]:
    """Returns the seconds from the start at which requests arrive, drawn as vLLM draws them.

    The gaps follow a gamma distribution of mean `1 / rate` and shape `burstiness`: 1 is a Poisson
    process, less comes in bursts, more is more even, infinity is a constant gap. With a number of
    requests the times are stretched so that the last one is at `num_requests / rate`.
    """
    gaps = _gaps(rate, burstiness, random.Random(f"arrivals {seed}"))
    if num_requests is not None:
        drawn = list(itertools.islice(gaps, num_requests))
        factor = num_requests / rate / sum(drawn) if sum(drawn) else 0.0
        gaps = (gap_s * factor for gap_s in drawn)
    return itertools.accumulate(gaps)


def _gaps(rate: float, burstiness: float, rng: random.Random) -> Iterator[float]:
    while True:
        if burstiness == float("inf"):
            yield 1 / rate
        else:
            yield rng.gammavariate(burstiness, 1 / (rate * burstiness))


def read_trace(
    path: Path, prompts: RandomPrompts, *, speed: float, seed: str, chat: bool = True
) -> list[Request]:
    """Reads a trace: JSON Lines, or CSV as Azure's LLM inference traces.

    A row has a time: `offset` (seconds), `timestamp` (milliseconds, as Mooncake writes it),
    `TIMESTAMP` (date and time, Azure), or `Timestamp` (seconds, BurstGPT). And it has a `prompt` or
    `messages`, or lengths in tokens: `input_tokens` or `input_length` or `ContextTokens`, and
    `output_tokens` or `output_length` or `GeneratedTokens`. Mooncake's `hash_ids` become shared
    prefixes.

    Args:
        path: The file.
        prompts: Makes prompts for rows with lengths.
        speed: By how much the time runs faster than in the trace.
        seed: Decides the words.
        chat: Whether requests may carry messages.

    Raises:
        BenchError: The file cannot be read, or a row has no time or length that can be used.
    """
    rng = random.Random(f"trace {seed}")
    found: list[Request] = []
    for place, row in _csv_rows(path) if path.suffix.lower() == ".csv" else read_rows(path):
        found.append(_row_request(row, place, prompts, rng, chat))
        if len(found) == MAX_ROWS:
            break
    if not found:
        raise BenchError(f"{path} holds no requests")
    found.sort(key=lambda request: request.offset_s or 0.0)
    first_s = found[0].offset_s or 0.0
    return [
        replace(request, offset_s=((request.offset_s or 0.0) - first_s) / speed)
        for request in found
    ]


def _csv_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for at, row in enumerate(csv.DictReader(file), 2):
                yield f"{path}:{at}", row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BenchError(f"{path} cannot be read: {error}") from error


def _row_request(
    row: dict[str, Any], place: str, prompts: RandomPrompts, rng: random.Random, chat: bool
) -> Request:
    offset_s = _offset(row, place)
    output_len = _whole(row, _OUTPUT, place)
    prompt = row.get("messages") or row.get("prompt")
    prompt = prompt if chat else last_text(prompt)
    if isinstance(prompt, str | list) and prompt:
        return Request(prompt, len(str(prompt).split()), output_len, offset_s)
    input_len = _whole(row, _INPUT, place, MAX_INPUT_LEN)
    if input_len is None:
        raise BenchError(f"{place}: needs a `prompt`, `messages` or `input_tokens`")
    ids = row.get("hash_ids")
    if isinstance(ids, list) and ids:
        prompt = prompts.make_blocks(ids, input_len, MOONCAKE_BLOCK)
    else:
        prompt = prompts.make(rng, input_len)
    return Request(prompt, input_len, output_len, offset_s)


def _offset(row: dict[str, Any], place: str) -> float:
    """Returns the row's time in seconds, which later ones are compared with and waited for."""
    try:
        offset_s = _read_offset(row)
    except KeyError:
        raise BenchError(f"{place}: needs `offset` in seconds or `timestamp` in ms") from None
    except (TypeError, ValueError, OverflowError) as error:
        raise BenchError(f"{place}: the time cannot be read: {error}") from None
    if not math.isfinite(offset_s):
        raise BenchError(f"{place}: the time must be a finite number, not {offset_s}")
    return offset_s


def _read_offset(row: dict[str, Any]) -> float:
    if "offset" in row:
        return float(row["offset"])
    if "timestamp" in row:
        return float(row["timestamp"]) / 1000
    if "Timestamp" in row:
        return float(row["Timestamp"])
    return datetime.fromisoformat(str(row["TIMESTAMP"])[:26]).timestamp()


def _whole(
    row: dict[str, Any], names: tuple[str, ...], place: str, most: int | None = None
) -> int | None:
    """Returns the first length that a row has; 0, which recorded traces hold, counts as 1."""
    name = next((name for name in names if row.get(name) not in (None, "")), None)
    if name is None:
        return None
    try:
        found = int(row[name])
    except (TypeError, ValueError, OverflowError):
        raise BenchError(f"{place}: `{name}` must be a whole number, not {row[name]!r}") from None
    if found < 0 or (most is not None and found > most):
        bounds = "at least 0" if most is None else f"from 0 to {most}"
        raise BenchError(f"{place}: `{name}` must be {bounds}, not {found}")
    return max(1, found)
