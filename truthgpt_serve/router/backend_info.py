"""The backend of each model, what it can do and how its last process died, from its own card.

The card is fetched once for each deployment, and again when its replicas change.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import quote

from truthgpt_serve.errors import TruthGPTError
from truthgpt_serve.http.json_body import parse_object
from truthgpt_serve.router.discovery import ModelDirectory
from truthgpt_serve.router.model_entry import ModelEntry

logger = logging.getLogger(__name__)

TIMEOUT_S = 2.0
"""Longest wait for a model: one that is busy, or stuck, must not hold a reader up."""
RETRY_AFTER_S = 10.0
"""A model that gave no answer is asked again at the earliest after this."""

Found = dict[str, Any] | None
Fetch = Callable[[bytes], Awaitable[tuple[int, bytes]]]
"""Returns status and body of `GET path`."""


class BackendCard(NamedTuple):
    """What a model says of itself; each is None where that is not known.

    Attributes:
        acceleration: Its backend.
        capabilities: What it can do.
        last_error: How its last process died.
    """

    acceleration: dict[str, Any] | None
    capabilities: dict[str, Any] | None
    last_error: str | None


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a model said.

    Attributes:
        created: Which deployment of it.
        replicas: Which replicas of that: a new one may have another last error.
        value: Its card, or None.
        expires_s: When to ask again, by the monotonic clock.
    """

    created: int
    replicas: frozenset[str]
    value: Found
    expires_s: float


class BackendInfo:
    """Asks running models for their backend, and remembers it until they are deployed again.

    Args:
        directory: Says which models run.
        fetch: Reads from Serve's proxy.
    """

    def __init__(self, directory: ModelDirectory, fetch: Fetch) -> None:
        self._directory = directory
        self._fetch = fetch
        self._answers: dict[str, _Answer] = {}
        self._asking: dict[str, asyncio.Task[Found]] = {}

    async def find(self, name: str) -> BackendCard:
        """Returns what the model of this name says of itself.

        A model without a running replica is not asked, because that would wake it.
        """
        card = await self._find_card(name) or {}
        backend, can, error = (
            card.get(key) for key in ("acceleration", "capabilities", "last_error")
        )
        return BackendCard(
            backend if isinstance(backend, dict) else None,
            can if isinstance(can, dict) else None,
            error if isinstance(error, str) else None,
        )

    async def _find_card(self, name: str) -> Found:
        entry = self._directory.find(name)
        if entry is None:
            return None
        known = self._answers.get(entry.application)
        if known is not None and known.created != entry.created:
            known = None
        fresh = known is not None and known.replicas == entry.replicas
        if not entry.running or (fresh and known and time.monotonic() < known.expires_s):
            return None if known is None else known.value
        task = self._asking.get(entry.application)
        if task is None:
            task = asyncio.create_task(self._ask(name), name=f"card of {entry.application}")
            self._asking[entry.application] = task
            task.add_done_callback(lambda _: self._asking.pop(entry.application, None))
        # One reader that leaves must not end it for the others.
        return await asyncio.shield(task)

    async def _ask(self, name: str) -> Found:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                # What the directory knows may be seconds old, and the replica gone meanwhile.
                await self._directory.refresh(max_age_s=0)
                entry = self._directory.find(name)
                if entry is None or not entry.running:
                    return None
                value = await self._read(entry)
        except Exception as error:  # of many kinds: the page is complete without it
            logger.info("the backend of %r is not known: %r", name, error)
            if (entry := self._directory.find(name)) is not None:
                self._remember(entry, None, time.monotonic() + RETRY_AFTER_S)
            return None
        # While a deployment is replaced, a replica of the former one may have answered.
        self._remember(entry, value, float("inf") if entry.settled else float("-inf"))
        return value

    async def _read(self, entry: ModelEntry) -> Found:
        path = f"/v1/models/{quote(entry.application, safe='')}".encode()
        status, body = await self._fetch(entry.prefix + path)
        if status != 200:
            raise TruthGPTError(f"its own card is answered with status {status}")
        return parse_object(body)

    def _remember(self, entry: ModelEntry, value: Found, expires_s: float) -> None:
        names = {other.application for other in self._directory.entries()}
        for gone in self._answers.keys() - names:
            del self._answers[gone]
        self._answers[entry.application] = _Answer(entry.created, entry.replicas, value, expires_s)

    async def stop(self) -> None:
        """Ends what is being asked."""
        tasks = list(self._asking.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
