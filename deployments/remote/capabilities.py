"""What a remote model can do, where its server's own card says so, as other cards of ours do."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from typing import Any
from urllib.parse import quote

from deployments.remote.health import LIST_PATH, Monitor
from truthgpt_serve.errors import TruthGPTError

logger = logging.getLogger(__name__)

TIMEOUT_S = 1.0
"""Longest wait: the card of ours is complete without it, and its readers wait for two seconds."""
ASK_AGAIN_S = 60.0


class Capabilities:
    """Asks for the card of one remote model, and remembers what it says for a minute.

    Args:
        monitor: Sends the questions and knows the model's name there.
    """

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor
        self._asking = asyncio.Lock()
        self._found: dict[str, Any] | None = None
        self._expires_s = float("-inf")

    async def find(self) -> dict[str, Any] | None:
        """Returns the card's `capabilities`, or None where there are none; never raises."""
        async with self._asking:
            if time.monotonic() >= self._expires_s:
                self._found = await self._ask()
                self._expires_s = time.monotonic() + ASK_AGAIN_S
        return self._found

    async def _ask(self) -> dict[str, Any] | None:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                name = await self._monitor.find_model()
                status, body = await self._monitor.get(f"{LIST_PATH}/{quote(name, safe='')}")
            found = json.loads(body).get("capabilities") if status == 200 else None
        except (TruthGPTError, TimeoutError, ValueError, AttributeError, RecursionError) as error:
            logger.info("the remote server's card of the model is not known: %r", error)
            return None
        if not isinstance(found, dict):
            return None
        return {name: value for name, value in found.items() if isinstance(value, bool | int)}
