"""Merges the adapter of a result into its base."""

from __future__ import annotations

from pathlib import Path

from truthgpt_serve.takeaway.errors import TakeawayError
from truthgpt_serve.takeaway.output import check_output
from truthgpt_serve.takeaway.result import find_result
from truthgpt_serve.takeaway.whole import MAX_SHARD, write_card_of, write_whole


def merge(
    given: Path,
    *,
    out: Path | None = None,
    base: str | None = None,
    dtype: str | None = None,
    max_shard: str = MAX_SHARD,
    force: bool = False,
) -> tuple[Path, list[str]]:
    """Merges the adapter of a run, or any adapter, into its base.

    Args:
        given: See `find_result`.
        out: The new folder; by default `merged` in the run's folder, else beside the adapter's.
        base: In place of the base that the run or the adapter names.
        dtype: One of `DTYPES`; by default the base's.
        max_shard: Largest file of weights.
        force: Whether a folder that exists is replaced.

    Returns:
        The new folder, and lines on what was done.

    Raises:
        TakeawayError: It cannot be done; nothing was written.
    """
    result = find_result(given, base)
    if not result.is_adapter:
        fix = "serve or export it as it is"
        raise TakeawayError(f"{result.folder}: is a whole model, there is nothing to merge ({fix})")
    target = check_output(out or result.beside("merged"), force=force, source=result.folder)
    lines = write_whole(result, target, dtype=dtype, max_shard=max_shard)
    write_card_of(result, target)
    return target, lines
