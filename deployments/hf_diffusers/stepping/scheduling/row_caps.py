"""How many rows of a shape one forward should have: kept, measured and written to disk."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from deployments.hf_diffusers.stepping.pipelines.added import ModuleEntry

logger = logging.getLogger(__name__)

FILE_VERSION = 1


@dataclass(frozen=True)
class RowCap:
    """What was measured for one shape."""

    max_rows: int
    seconds: Mapping[int, float] = field(default_factory=dict)
    """Median seconds of a forward by its number of rows. Empty if the cap was not measured."""


RowCaps = Mapping[str, RowCap]
"""By `<device>|<dtype>|<digest of the module's configuration>|<shape of a row>`."""


@dataclass(eq=False)
class Probe:
    """Asks the engine to measure the first denoiser call of a job instead of running it."""

    max_rows: int
    num_repeats: int
    key: str | None = None


class RowCapTable:
    """The row caps of one engine. Thread-safe."""

    def __init__(self, max_rows: int, file: Path | None) -> None:
        self._max_rows = max_rows
        self._file = file
        self._lock = threading.Lock()
        self._caps: dict[str, RowCap] = {} if file is None else load_row_caps(file)
        self._shrunk: dict[str, int] = {}
        self._places: dict[int, str] = {}
        self._keys: dict[tuple[int, str], str] = {}

    def key(self, entry: ModuleEntry, shape: str) -> str:
        """Returns under which key the caps of a module's shape are kept."""
        known = self._keys.get((id(entry), shape))
        if known is None:
            place = self._places.get(id(entry))
            if place is None:
                dtype = str(entry.dtype).removeprefix("torch.")
                parts = (device_name(entry.device), dtype, config_digest(entry.module))
                place = self._places[id(entry)] = "|".join(parts)
            known = self._keys[id(entry), shape] = f"{place}|{shape}"
        return known

    def max_rows(self, key: str) -> int:
        """Returns the most rows that should share a forward."""
        cap = self._caps.get(key)
        measured = self._max_rows if cap is None else cap.max_rows
        return min(self._max_rows, measured, self._shrunk.get(key, self._max_rows))

    def shrink(self, key: str, num_rows: int) -> None:
        """Halves a cap after that many rows did not fit; for this process, not on disk."""
        halved = max(num_rows // 2, 1)
        with self._lock:
            self._shrunk[key] = min(self._shrunk.get(key, self._max_rows), halved)

    def get(self, key: str) -> RowCap | None:
        """Returns what was measured, None if nothing was."""
        return self._caps.get(key)

    def put(self, key: str, cap: RowCap) -> None:
        """Keeps what was measured, in the file too if there is one; a full disk is only logged."""
        with self._lock:
            self._caps[key] = cap
            if self._file is None:
                return
            try:
                # Another replica may have measured other shapes meanwhile.
                save_row_caps(self._file, {**load_row_caps(self._file), **self._caps})
            except OSError as error:
                logger.warning("row caps could not be written to %s: %s", self._file, error)

    def snapshot(self) -> RowCaps:
        """Returns all caps that were measured or read."""
        with self._lock:
            return dict(self._caps)


def load_row_caps(file: Path) -> dict[str, RowCap]:
    """Reads a file of row caps; a missing one is empty, a damaged one too, with a warning."""
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        logger.warning("row caps %s cannot be read and are measured anew: %s", file, error)
        return {}
    try:
        content = json.loads(text)
        if content["version"] != FILE_VERSION:
            raise ValueError(f"version {content['version']}, not {FILE_VERSION}")
        return {str(key): _read_cap(item) for key, item in content["caps"].items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        logger.warning("row caps %s are damaged and measured anew: %r", file, error)
        return {}


def _read_cap(item: Mapping[str, Any]) -> RowCap:
    max_rows = item["max_rows"]
    if not isinstance(max_rows, int) or max_rows < 1:
        raise ValueError(f"max_rows is {max_rows!r}")
    return RowCap(max_rows, {int(rows): float(value) for rows, value in item["seconds"].items()})


def save_row_caps(file: Path, caps: RowCaps) -> None:
    """Writes a file of row caps so that a reader sees either the old or the new one whole.

    Raises:
        OSError: The folder cannot be written to.
    """
    content = {
        "version": FILE_VERSION,
        "caps": {
            key: {"max_rows": cap.max_rows, "seconds": {str(k): v for k, v in cap.seconds.items()}}
            for key, cap in sorted(caps.items())
        },
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            json.dump(content, stream, indent=1)
        os.replace(temporary, file)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def measure_row_cap(
    forward: Callable[[int], None],
    rows_per_call: int,
    *,
    max_rows: int,
    num_repeats: int,
    min_gain: float,
    synchronize: Callable[[], None],
    clock: Callable[[], float] = time.perf_counter,
) -> RowCap:
    """Times forwards of 1, 2, 4, ... calls; chooses the rows past which more gain little.

    Args:
        forward: Runs a forward of that many calls.
        rows_per_call: Rows of one call.
        max_rows: Most rows to try.
        num_repeats: Timed forwards for each number of rows, after one that warms up.
        min_gain: Least relative gain in rows per second over the number of rows before.
        synchronize: Waits for the device.
        clock: Returns seconds.
    """
    seconds: dict[int, float] = {}
    best = rows_per_call
    for num_calls in _doublings(max(max_rows // rows_per_call, 1)):
        num_rows = num_calls * rows_per_call
        try:
            seconds[num_rows] = _time(forward, num_calls, num_repeats, synchronize, clock)
        except torch.OutOfMemoryError:
            break
        if num_rows == rows_per_call:
            continue
        gain = (num_rows / seconds[num_rows]) / (best / seconds[best]) - 1
        if gain < min_gain:
            break
        best = num_rows
    return RowCap(best, seconds)


def _doublings(limit: int) -> Sequence[int]:
    counts = [1]
    while counts[-1] * 2 <= limit:
        counts.append(counts[-1] * 2)
    return counts if counts[-1] == limit else [*counts, limit]


def _time(
    forward: Callable[[int], None],
    num_calls: int,
    num_repeats: int,
    synchronize: Callable[[], None],
    clock: Callable[[], float],
) -> float:
    times = []
    for _ in range(num_repeats + 1):
        synchronize()
        start = clock()
        forward(num_calls)
        synchronize()
        times.append(clock() - start)
    measured = sorted(times[1:])
    return max(measured[len(measured) // 2], 1e-9)


def device_name(device: torch.device) -> str:
    """Returns what distinguishes the speed of a device: a GPU's model, or the CPU's threads."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"{device.type}-{torch.get_num_threads()}"


def config_digest(module: torch.nn.Module) -> str:
    """Returns a hash of the module's class and configuration."""
    original = getattr(module, "_orig_mod", module)  # under torch.compile
    config = getattr(original, "config", {})
    content = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    compiled = "compiled" if original is not module else ""
    text = json.dumps(
        [type(original).__name__, compiled, content], sort_keys=True, default=_stable_text
    )
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _stable_text(value: Any) -> str:
    # The default repr holds an address, which would make each start measure anew.
    return value.__name__ if isinstance(value, type) else type(value).__name__
