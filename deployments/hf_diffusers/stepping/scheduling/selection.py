"""Chooses which parked calls run next and which queued jobs begin; does not run them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Hashable, Sequence
from typing import TypeAlias

from deployments.hf_diffusers.stepping.scheduling.cost_model import CostKey
from deployments.hf_diffusers.stepping.scheduling.scheduled_job import ModuleCall, ScheduledJob

Urgency = tuple[int, tuple[int, float]]
"""The smallest goes first."""
Group: TypeAlias = list[tuple[Urgency, int, ModuleCall]]
"""Calls that may share a forward. The index breaks ties in the order of arrival, and keeps calls
from being compared."""


class CallChooser:
    """Chooses the calls of the next forward. For one thread.

    Text encoding and VAE go before denoising. But while more images of the same pipeline and size
    wait for their next step than fit into a forward, they wait for up to `max_held` forwards, so
    that images which are out of step share them too.
    Among denoising steps the most urgent job goes (`ScheduledJob.priority`), but the job that was
    submitted first has at least `oldest_share` of the time: a job of T seconds that is the oldest
    ends within T / oldest_share, whatever else comes in, and the others lose no more than that
    share to it.
    """

    def __init__(
        self,
        *,
        aging: float,
        oldest_share: float,
        max_held: int,
        max_rows: Callable[[ModuleCall], int],
    ) -> None:
        self._aging = aging
        self._oldest_share = oldest_share
        self._max_held = max_held
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
        groups: dict[Hashable, Group] = {}
        for index, call in enumerate(parked):
            item = (self._urgency(call, now), index, call)
            groups.setdefault(_group_key(call), []).append(item)
        ready = self._without_held(groups.values(), now)
        best = min(ready, key=lambda group: min(item[:2] for item in group))
        chosen: list[ModuleCall] = []
        num_rows = limit = 0
        for _, _, call in sorted(best, key=lambda item: item[:2]):
            if not chosen:
                limit = self._max_rows(call)
            elif num_rows + call.num_rows > limit:
                continue
            chosen.append(call)
            num_rows += call.num_rows
            if not call.is_light:
                call.scheduled.num_held = 0
        self._was_served = any(call.scheduled is self._oldest for call in chosen)
        return chosen

    def _without_held(self, groups: Collection[Group], now: float) -> list[Group]:
        """Returns the groups that may run now; the others wait for calls to share their forward."""
        crowded = {
            call.scheduled.cost_key
            for group in groups
            if not group[0][2].is_light and self._num_rows(group) > self._max_rows(group[0][2])
            for _, _, call in group
        }
        ready: list[Group] = []
        held: list[Group] = []
        for group in groups:
            (held if self._may_wait(group, crowded, now) else ready).append(group)
        if not any(group[0][2].is_light for group in ready):
            for group in held:
                for _, _, call in group:
                    call.scheduled.num_held += 1
        return ready

    def _may_wait(self, group: Group, crowded: Container[CostKey], now: float) -> bool:
        calls = [call for _, _, call in group]
        if not calls[0].is_light or calls[0].schema is None:
            return False
        if self._num_rows(group) >= self._max_rows(calls[0]):
            return False
        return all(
            job.cost_key in crowded and job.num_held < self._max_held and not job.is_due(now)
            for job in (call.scheduled for call in calls)
        )

    @staticmethod
    def _num_rows(group: Group) -> int:
        return sum(call.num_rows for _, _, call in group)

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
