"""The options of an engine and of a job."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Limits and preferences of one engine. A value out of range raises ValueError by name."""

    max_rows: int = 16
    """Most rows of one forward. A request with guidance has two rows an image; one that has more
    rows than this by itself still runs, alone."""
    max_decode_rows: int = 4
    """Most images in one VAE decode. Decoding takes more memory an image than denoising."""
    max_ongoing: int = 32
    """Most requests between their first and their last step; each holds its latents and embeddings
    in device memory."""
    max_queued: int = 64
    """Most requests that wait to begin; one more is refused."""
    aging: float = 1.0
    """How fast waiting beats size: the remaining work of a request counts as divided by
    `slowdown ** aging`, its slowdown being the time since submission over the time of its work
    alone. 0 is pure shortest-remaining-work-first, which can starve a large image."""
    oldest_share: float = 0.1
    """Least share of the time for the request that was submitted first, and of the places of those
    that begin. It bounds what a large image waits for small ones, however many come."""
    max_held: int = 4
    """While more images of one pipeline and size are between two steps than fit into a forward, so
    many forwards may go before a text encoding or a decoding of theirs, so that it shares its own
    with others. 0: it shares with those that wait at that moment."""
    batch_buckets: tuple[int, ...] = ()
    """Row counts that compiled modules were compiled for: a denoiser's batch is filled up to the
    next of them with repeated rows. Empty: no filling."""
    row_caps_file: Path | None = None
    """Where `profile` keeps what it measured, as JSON. None: measured anew by each engine."""
    min_row_gain: float = 0.15
    """Least relative gain in rows per second for which `profile` accepts more rows."""
    max_run_ahead: int = 1
    """On a GPU, forwards that may be enqueued behind the one that runs. 0 makes cancelled requests
    leave one step earlier and lets the GPU idle while the next step is launched."""
    cpu_timesteps: bool = True
    """On a GPU, keep the schedulers' timesteps on the CPU: many schedulers otherwise wait for the
    device in each step."""
    self_check_tolerance: float = 1e-4
    """Largest difference between batched and alone that an unknown denoiser may show, relative to
    the largest absolute value; for float32, and 300 times as much for 16-bit types."""

    def __post_init__(self) -> None:
        for name in ("max_rows", "max_decode_rows", "max_ongoing"):
            _check(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("max_queued", "aging", "max_held", "min_row_gain", "max_run_ahead"):
            _check(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        _check(0 <= self.oldest_share < 1, "oldest_share", self.oldest_share, "in [0, 1)")
        _check(
            self.self_check_tolerance > 0,
            "self_check_tolerance",
            self.self_check_tolerance,
            "above 0",
        )
        for rows in self.batch_buckets:
            _check(rows >= 1, "batch_buckets", rows, "at least 1 each")


def _check(holds: bool, name: str, value: object, wanted: str) -> None:
    if not holds:
        raise ValueError(f"EngineOptions.{name} is {value}: it must be {wanted}")
