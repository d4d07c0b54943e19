"""Counts at this machine while the server that counts for all of them is away."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from truthgpt_serve.access.counting.charges import BUCKET_S, Charge, Standing
from truthgpt_serve.access.counting.counters import Counters
from truthgpt_serve.access.counting.own_counts import Counts
from truthgpt_serve.access.counting.redis_counters import RedisCounters


class AwayCounters:
    """This machine's counts, on top of what all machines had used when the server last answered.

    What is let in is noted, for the server to be told when it is back.

    Args:
        local: This machine's counts.
        shared: Those of the server.
    """

    def __init__(self, local: Counters, shared: RedisCounters) -> None:
        self._local = local
        self._shared = shared
        shared.forget = self._forget

    def take_all(self, charges: Sequence[Charge], now_s: float) -> list[Standing]:
        """Counts all of these, if all limits allow it; else nothing.

        Args:
            charges: What to count, each under another name.
            now_s: The time, as `time.time` gives it.
        """
        known = [self._shared.known(charge.name, now_s) for charge in charges]
        found = self._local.take_all(
            [
                charge if charge.limit is None else replace(charge, limit=charge.limit - used)
                for charge, used in zip(charges, known, strict=True)
            ],
            now_s,
        )
        if all(standing.fits for standing in found):
            for charge in charges:
                self._shared.note(charge.name, charge.amount, now_s, now_s)
        return [
            replace(standing, used=standing.used + used)
            for standing, used in zip(found, known, strict=True)
        ]

    def correct(self, name: str, amount: float, then_s: float, now_s: float) -> None:
        """Corrects what was counted at an earlier time, as `Counters.correct` does."""
        self._local.correct(name, amount, then_s, now_s)
        self._shared.note(name, amount, then_s, now_s)

    def finish(self, name: str, now_s: float) -> None:
        """Takes back one thing that ran."""
        self._local.finish(name, now_s)

    def _forget(self, name: str, counts: Counts) -> None:
        """Takes back here what the server has been told: it would count twice when that is away."""
        now_s = time.time()
        for bucket, amount in counts.items():
            if amount > 0:
                self._local.correct(name, -amount, (bucket + 0.5) * BUCKET_S, now_s)
