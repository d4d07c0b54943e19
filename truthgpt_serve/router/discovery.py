"""Which models exist, where they are mounted and whether they can answer now.

Follows the applications by polling Serve's proxy, which is cheap, and asks the controller only when
something changed or a request needs to know.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from truthgpt_serve.cluster.state import ApplicationState, ServeState
from truthgpt_serve.errors import UnavailableError
from truthgpt_serve.router.model_entry import ModelEntry
from truthgpt_serve.router.model_table import ModelTable

logger = logging.getLogger(__name__)

ROUTES_PERIOD_S = 1.0
"""How often the proxy's route table is read."""
STATE_PERIOD_S = 10.0
"""How often the controller is asked when nothing seems to change."""
UNSETTLED_PERIOD_S = 2.0
"""How often it is asked while an application is not RUNNING with a replica."""
MIN_REFRESH_PERIOD_S = 1.0
"""Requests for unknown models ask the controller at most this often."""
MIN_LOOK_PERIOD_S = 0.02
"""And the proxy at most this often."""
FETCH_TIMEOUT_S = 10.0
MAX_AGE_S = 60.0
"""State older than this says nothing any more. A controller that dies is back within half of it,
also on a busy machine, and is asked every 10 s."""
CONFIRM_TIMEOUT_S = 1.0
"""How long a request that was not reached waits for news, each time that it is sent again."""
RETRY_AFTER_S = 5


class ModelDirectory(ModelTable):
    """The models of this Serve instance, kept current by a background task.

    Args:
        fetch_state: Asks the controller; runs in a thread.
        fetch_routes: Returns the proxy's route table as bytes, only to see whether it changed.
        clock: The time in seconds, which only goes forward.
    """

    def __init__(
        self,
        fetch_state: Callable[[], ServeState],
        fetch_routes: Callable[[], Awaitable[bytes]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self._fetch_state = fetch_state
        self._fetch_routes = fetch_routes
        self._clock = clock
        self._routes = b""
        self._refreshed_at_s = self._looked_at_s = float("-inf")
        self._refreshing: asyncio.Task[None] | None = None
        self._asked: tuple[float, asyncio.Future[ServeState]] | None = None
        self._follower: asyncio.Task[None] | None = None
        self._looking: asyncio.Task[None] | None = None

    # -- reading

    async def look_up(self, name: str) -> ModelEntry | None:
        """Returns what `find` does, by news not older than a second if the model was not ready."""
        entry = self.find(name)
        if entry is not None and entry.running:
            return entry
        with contextlib.suppress(Exception):  # then by what was last known
            await self.refresh(max_age_s=MIN_REFRESH_PERIOD_S)
        return self.find(name)

    async def find_playground(self) -> ApplicationState | None:
        """Returns the playground, by news not older than a second; None where there is none."""
        with contextlib.suppress(Exception):  # then by what was last known
            await self.refresh(max_age_s=MIN_REFRESH_PERIOD_S)
        return self.playground

    @property
    def loaded(self) -> bool:
        """Whether the controller has answered once."""
        return self._refreshed_at_s > float("-inf")

    @property
    def lost_s(self) -> float | None:
        """Seconds since the controller answered last, where that is too long; else None."""
        age_s = self._clock() - self._refreshed_at_s
        return age_s if self.loaded and age_s > MAX_AGE_S else None

    async def resolve(self, name: str) -> ModelEntry:
        """Returns the entry of a model that a request may be relayed to.

        One that was not ready is refused only by what Serve said after the request came: somebody
        else may have seen already that it is. So is an unknown one where the proxy has new routes.

        Raises:
            ModelNotFoundError: No model has this name; the message lists those that exist.
            UnavailableError: The model has never run, or failed.
        """
        arrived_s = self._clock()
        entry = self.find(name)
        if entry is not None and entry.running:
            return entry
        try:
            await self.refresh(max_age_s=MIN_REFRESH_PERIOD_S)
            entry = self.find(name)
            if entry is None:
                await self._look_again(arrived_s)
            elif entry.error is not None:
                await self._refresh_since(arrived_s)
        except Exception as error:  # of many kinds; what was last known is better than none of it
            logger.warning("Serve's controller does not answer: %r", error)
            if not self.loaded:
                raise UnavailableError(
                    "the service is starting", retry_after_s=RETRY_AFTER_S
                ) from error
        entry = self.get(name)
        if entry.error is not None:
            raise UnavailableError(entry.error, retry_after_s=RETRY_AFTER_S)
        return entry

    async def confirm(self, name: str) -> None:
        """Asks whether a model that a request did not reach is still there.

        Raises:
            ModelNotFoundError: It is not, by news not older than a second.
            UnavailableError: There has been no news for so long that nothing is known.
        """
        with contextlib.suppress(Exception):  # then by what was last known
            async with asyncio.timeout(CONFIRM_TIMEOUT_S):
                await self.refresh(max_age_s=MIN_REFRESH_PERIOD_S)
        self.get(name)
        if self.lost_s is not None:
            message = f"Ray Serve has not answered for {self.lost_s:.0f} s; the service may restart"
            raise UnavailableError(message, retry_after_s=RETRY_AFTER_S)

    # -- following

    async def start(self) -> None:
        """Starts to follow the applications; `stop` ends it."""
        self._follower = asyncio.create_task(self._follow(), name="directory")

    async def stop(self) -> None:
        """Stops following."""
        started = (self._follower, self._refreshing, self._looking)
        tasks = [task for task in started if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._follower = self._refreshing = self._looking = None

    async def _follow(self) -> None:
        failing = False
        while True:
            try:
                async with asyncio.timeout(FETCH_TIMEOUT_S):
                    routes = await self._fetch_routes()
                now_s = self._clock()
                await self.refresh(max_age_s=self._period_s())
                while routes != self._routes and self._refreshed_at_s < now_s:
                    await self.refresh(max_age_s=0.0)
                self._routes = routes  # now those of the state
                failing = False
            except Exception as error:  # whatever it was: the next round may work again
                if not failing:
                    logger.warning("cannot follow the applications for now: %r", error)
                failing = True
                with contextlib.suppress(Exception):
                    await self.refresh(max_age_s=UNSETTLED_PERIOD_S)
            await asyncio.sleep(ROUTES_PERIOD_S)

    def _period_s(self) -> float:
        settled = all(
            state.status == "RUNNING" and state.num_running_replicas
            for state in self._states.values()
        )
        return STATE_PERIOD_S if settled else UNSETTLED_PERIOD_S

    async def refresh(self, *, max_age_s: float) -> None:
        """Asks the controller, unless it answered within `max_age_s`; callers share one call.

        Raises:
            TimeoutError: The controller did not answer within 10 s.
            Exception: Whatever else went wrong with it.
        """
        if self._clock() - self._refreshed_at_s < max_age_s:
            return
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.create_task(self._refresh(), name="directory refresh")
        await asyncio.shield(
            self._refreshing
        )  # a client that leaves must not end it for the others

    async def _look_again(self, moment_s: float) -> None:
        """Asks the controller after `moment_s` where the proxy has other routes than it had."""
        while self._looked_at_s < moment_s:  # a look under way had begun before
            if self._looking is None or self._looking.done():
                self._looking = asyncio.create_task(self._look(), name="directory look")
                self._looking.add_done_callback(_retrieve)
            await asyncio.shield(self._looking)

    async def _look(self) -> None:
        await asyncio.sleep(max(0.0, self._looked_at_s + MIN_LOOK_PERIOD_S - self._clock()))
        began_s = self._clock()
        try:
            async with asyncio.timeout(CONFIRM_TIMEOUT_S):
                routes = await self._fetch_routes()
        except Exception:  # of many kinds; who follows the applications logs them
            routes = self._routes
        if routes != self._routes:
            await self._refresh_since(began_s)
        self._looked_at_s = began_s

    async def _refresh_since(self, moment_s: float) -> None:
        """Asks the controller unless it answered after `moment_s`, and not sooner than allowed."""
        while self._refreshed_at_s < moment_s:  # a call under way had begun before
            age_s = self._clock() - self._refreshed_at_s
            await asyncio.sleep(max(0.0, MIN_REFRESH_PERIOD_S - age_s))
            await self.refresh(max_age_s=MIN_REFRESH_PERIOD_S)

    async def _refresh(self) -> None:
        # One call at a time: a controller that is gone would hold a thread for each of them.
        if self._asked is None:
            call = asyncio.get_running_loop().run_in_executor(None, self._fetch_state)
            call.add_done_callback(_retrieve)
            self._asked = self._clock(), call
        asked_at_s, call = self._asked
        try:
            async with asyncio.timeout(FETCH_TIMEOUT_S):
                state = await asyncio.shield(call)
        finally:
            if call.done():
                self._asked = None
        self.update(state)
        self._refreshed_at_s = asked_at_s

    def update(self, state: ServeState) -> None:
        """Takes over what the controller says now."""
        super().update(state)
        self._refreshed_at_s = self._clock()


def _retrieve(call: asyncio.Future[Any]) -> None:
    """Has asyncio not report the failure of a call that no request waits for any more."""
    if not call.cancelled():
        call.exception()
