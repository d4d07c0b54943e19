"""How many requests models hold, and how many more a router may have at one.

A model with keys is let have twice what it holds: a request may take the place of another key's
there, so its replicas have to see more. No key has more requests than it leaves places (a dynamic
threshold, as `cluster/haproxy/credentials.py` says), which is half of them where it is alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from truthgpt_serve.errors import OverloadedError
from truthgpt_serve.queue_full import queue_full
from truthgpt_serve.router.model_entry import ModelEntry
from truthgpt_serve.router.waiting.claims import Claimant
from truthgpt_serve.router.waiting.requests import Requests

FAIR_QUEUE = "fair"
"""What `limits.queue` of a model's card says if requests wait in an order of their keys."""
RESERVE = 32
"""Requests beyond what the models hold: those that a router answers by itself, or has wait."""


@dataclass(frozen=True, slots=True)
class Room:
    """What a router may have at a model.

    Attributes:
        entry: The model.
        limit: How many requests.
        num_places: How many of them the model works on.
    """

    entry: ModelEntry
    limit: int
    num_places: float

    def num_free(self, requests: Requests, who: Claimant) -> int:
        """Returns how many more requests there may be, for one of this client.

        Args:
            requests: Those at the model.
            who: The client.
        """
        num_free = self.limit - requests.num_running
        return num_free - requests.running.get(who.client, 0) if is_keyed(self.entry) else num_free

    def full(self, requests: Requests, who: Claimant, wait_s: int) -> OverloadedError:
        """Returns the refusal of a client that may come again in so many seconds."""
        is_its_own = requests.num_running < self.limit and self.num_free(requests, who) <= 0
        number = requests.running[who.client] if is_its_own else self.limit
        return queue_full(f"model {self.entry.name!r}", number, wait_s)


def room_at(entry: ModelEntry, num_routers: int) -> Room | None:
    """Returns what a router may have at a model; None where that is not bounded.

    Alone it, and each key, can use all replicas; together the routers fill no more than their
    queues.

    Args:
        entry: The model.
        num_routers: Routers that share the model's queue.
    """
    limits = limits_of(entry)
    if limits is None:
        return None
    ongoing, queued = limits
    alone = 2 * ongoing if is_keyed(entry) else ongoing
    return Room(entry, max(1, alone, (ongoing + queued) // num_routers), ongoing / num_routers)


def capacity(entries: Iterable[ModelEntry]) -> int | None:
    """Returns how many requests the routers may have at the same time; None where it is not known.

    Args:
        entries: All models, adapters and aliases.
    """
    held = [limits_of(entry) for entry in entries if entry.is_model]
    known = [sum(limits) for limits in held if limits is not None]
    return sum(known) + RESERVE if len(known) == len(held) else None


def held_by_model(entries: Iterable[ModelEntry], most_s: float) -> dict[str, int]:
    """Returns how many requests each running model holds, by name, where that is known.

    Args:
        entries: All models, adapters and aliases.
        most_s: Only models that end their requests within so many seconds by themselves.
    """
    held = {}
    for entry in entries:
        limits = limits_of(entry) if entry.is_model and entry.running else None
        if limits is not None and entry.card["limits"].get("max_request_s", most_s + 1) <= most_s:
            held[entry.name] = sum(limits)
    return held


def is_keyed(entry: ModelEntry) -> bool:
    """Returns whether a model asks for keys, and its requests wait in an order of those."""
    return (entry.card.get("limits") or {}).get("queue") == FAIR_QUEUE


def limits_of(entry: ModelEntry) -> tuple[int, int] | None:
    """Returns how many requests all replicas of a model work on, and how many they queue.

    Those with keys get twice as many.
    """
    limits = entry.card.get("limits") or {}
    ongoing = limits.get("max_ongoing_requests")
    queued = limits.get("max_queued_requests")
    if not isinstance(ongoing, int) or not isinstance(queued, int):
        return None
    num_replicas = max(1, entry.num_replicas)  # where none runs yet, one is about to
    if is_keyed(entry):
        queued = ongoing + 2 * queued
    return ongoing * num_replicas, queued * num_replicas
