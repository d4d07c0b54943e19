"""Chooses which parked calls run next and which queued jobs begin; does not run them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

from deployments.hf_diffusers.stepping.scheduling.scheduled_job import ModuleCall, ScheduledJob

Urgency = tuple[int, tuple[int, float]]
"""The smallest goes first."""


class CallChooser:
    """Chooses the calls of the next forward. For one thread.

    Text encoding and VAE go before denoising. Among denoising steps the most urgent job goes
    (`ScheduledJob.priority`), but the job that was submitted first has at least `oldest_share` of
    the time: a job of T seconds that is the oldest ends within T / oldest_share, whatever else
    comes in, and the others lose no more than that share to it.
    """

    def __init__(
        self, *, aging: float, oldest_share: float, max_rows: Callable[[ModuleCall], int]
    ) -> None:
        self._aging = aging
        self._oldest_share = oldest_share
        self._max_rows = max_rows
        self._oldest: ScheduledJob | None = None
        self._was_served = False
        self._owed_s = 0.0
        self._chosen_at = 0.0

    def choose(self, parked: Sequence[ModuleCall], now: float) -> list[ModuleCall]:
        """Returns calls of one key, within the row cap, most urgent first.

        They are the most urgent call and as many others of its key as fit. A call with more rows
        than the cap runs alone.

        Args:
            parked: All calls that wait; at least one.
            now: Seconds of the monotonic clock.
        """
        self._account(parked, now)
        groups: dict[Hashable, list[tuple[Urgency, int, ModuleCall]]] = {}
        for index, call in enumerate(parked):
            # The index breaks ties in the order of arrival, and keeps calls from being compared.
            item = (self._urgency(call, now), index, call)
            groups.setdefault(_group_key(call), []).append(item)
        best = min(groups.values(), key=lambda group: min(item[:2] for item in group))
        chosen: list[ModuleCall] = []
        num_rows = limit = 0
        for _, _, call in sorted(best, key=lambda item: item[:2]):
            if not chosen:
                limit = self._max_rows(call)
            elif num_rows + call.num_rows > limit:
                continue
            chosen.append(call)
            num_rows += call.num_rows
        self._was_served = any(call.scheduled is self._oldest for call in chosen)
        return chosen

    def _urgency(self, call: ModuleCall, now: float) -> Urgency:
        if call.is_light:
            return 0, call.scheduled.priority(now, self._aging)
        if call.scheduled is self._oldest and self._owed_s > 0:
            return 1, (0, 0.0)
        return 2, call.scheduled.priority(now, self._aging)

    def _account(self, parked: Sequence[ModuleCall], now: float) -> None:
        """Counts what the oldest job was served since the last choice, and what it is owed."""
        oldest = min(
            (call.scheduled for call in parked), key=lambda scheduled: scheduled.submitted_at
        )
        if oldest is not self._oldest:
            self._oldest, self._owed_s = oldest, 0.0
        else:
            passed = now - self._chosen_at
            self._owed_s += passed * (self._oldest_share - (1.0 if self._was_served else 0.0))
        self._chosen_at = now


def _group_key(call: ModuleCall) -> Hashable:
    bank = call.module.adapters
    # Whether adapters may share a forward is learned while calls are waiting already.
    return call.key, call.adapters if bank is not None and not bank.mixable else None


class Admission:
    """Decides which queued jobs begin, so that exclusive and batched jobs take turns.

    A job that needs its pipeline for itself waits, once it is first in order, for the ongoing jobs
    to end, and nothing begins meanwhile. After it, the batched jobs that wait have a turn before
    the next exclusive one, however urgent. So each side waits for the other once, not for ever.
    """

    def __init__(self, max_ongoing: int) -> None:
        self._max_ongoing = max_ongoing
        self._owes_batched = False

    def choose(self, ordered: Sequence[ScheduledJob], num_ongoing: int) -> list[ScheduledJob]:
        """Returns the jobs to begin now: batched ones, or a single exclusive one.

        Args:
            ordered: The queued jobs, most urgent first.
            num_ongoing: Jobs that have begun and not ended.
        """
        owes = self._owes_batched and any(not scheduled.exclusive for scheduled in ordered)
        begun: list[ScheduledJob] = []
        for scheduled in ordered:
            if scheduled.exclusive:
                if owes:
                    continue
                if begun or num_ongoing:
                    break
                self._owes_batched = True
                return [scheduled]
            if num_ongoing + len(begun) >= self._max_ongoing:
                break
            begun.append(scheduled)
        if begun:
            self._owes_batched = False
        return begun
