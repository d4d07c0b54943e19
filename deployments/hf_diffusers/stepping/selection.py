"""Chooses which parked calls run next and which queued jobs begin; does not run them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

from deployments.hf_diffusers.stepping.task import Call, Task


def choose_calls(
    parked: Sequence[Call],
    *,
    now: float,
    aging: float,
    max_rows: Callable[[Call], int],
) -> list[Call]:
    """Returns the calls for the next forward: of one key, within the row cap, most urgent first.

    Text encoding and VAE go before denoising; among equals the group with the most urgent job
    (`Task.priority`) goes, and takes along as many other calls of its key as fit. A call with more
    rows than the cap runs alone.
    """
    groups: dict[Hashable, list[tuple[tuple[int, tuple[int, float]], int, Call]]] = {}
    for index, call in enumerate(parked):
        order = (0 if call.is_light else 1, call.task.priority(now, aging))
        groups.setdefault(_group_key(call), []).append((order, index, call))
    # The index breaks ties in the order of arrival, and keeps calls from being compared.
    best = min(groups.values(), key=lambda group: min(item[:2] for item in group))
    chosen: list[Call] = []
    num_rows = 0
    limit = 0
    for _, _, call in sorted(best, key=lambda item: item[:2]):
        if not chosen:
            limit = max_rows(call)
        elif num_rows + call.num_rows > limit:
            continue
        chosen.append(call)
        num_rows += call.num_rows
    return chosen


def _group_key(call: Call) -> Hashable:
    bank = call.module.adapters
    # Whether adapters may share a forward is learnt while calls are waiting already.
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

    def choose(self, ordered: Sequence[Task], num_ongoing: int) -> list[Task]:
        """Returns the jobs to begin now: batched ones, or a single exclusive one.

        Args:
            ordered: The queued jobs, most urgent first.
            num_ongoing: Jobs that have begun and not ended.
        """
        owes = self._owes_batched and any(not task.exclusive for task in ordered)
        begun: list[Task] = []
        for task in ordered:
            if task.exclusive:
                if owes:
                    continue
                if begun or num_ongoing:
                    break
                self._owes_batched = True
                return [task]
            if num_ongoing + len(begun) >= self._max_ongoing:
                break
            begun.append(task)
        if begun:
            self._owes_batched = False
        return begun
