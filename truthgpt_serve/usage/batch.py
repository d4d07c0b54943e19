"""What passes between those who count, who keep and who ask: plain values."""

from __future__ import annotations

from dataclasses import dataclass

HOUR_S = 3600
DAY_HOURS = 24
KEEP_DAYS = 400
"""How long usage is kept where nothing else is configured: a year, and what compares with it."""
MAX_BATCH_ROWS = 4000
"""Rows of one batch; what is more comes with the next."""

COUNTS = (
    "requests",
    "errors",
    "prompt_tokens",
    "cached_tokens",
    "completion_tokens",
    "images",
    "megapixel_steps",
    "audio_s",
)
"""What is counted, in the order of a row."""

Place = tuple[int, str, str]
"""Hours since the epoch (UTC), name of the key, name of the model."""
Row = tuple[int, str, str, int, int, int, int, int, int, float, float]
"""A place, and `COUNTS`."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What one process has counted and not yet handed over.

    Attributes:
        source: Which process, at random.
        sequence: Which of its batches: each has a higher number than the one before.
        rows: What it counted.
    """

    source: str
    sequence: int
    rows: list[Row]


@dataclass(frozen=True, slots=True)
class UsageQuery:
    """What is asked of the collected usage.

    Attributes:
        start_hour: The first hour since the epoch that counts.
        end_hour: The first one that does not.
        group_by: Any of `day`, `key` and `model`; empty for the sum of all.
        limit: Most groups of the answer.
    """

    start_hour: int
    end_hour: int
    group_by: tuple[str, ...]
    limit: int
