"""Tasks of the event loop that a test runs on."""

from __future__ import annotations

import asyncio


async def settle() -> None:
    """Lets all tasks go on as far as they can."""
    for _ in range(20):
        await asyncio.sleep(0)
