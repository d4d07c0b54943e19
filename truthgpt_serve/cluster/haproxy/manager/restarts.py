"""Has HAProxy outlive its manager, and a manager start HAProxy again at once when that dies.

By itself Ray Serve notices either after three checks of its controller, and replaces both:
connections are refused for some 10 s, and then the new manager has to learn the routes. The old one
knows them, and so does an HAProxy that goes on. The one file that changes Ray's `HAProxyApi`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from truthgpt_serve.cluster.defaults import OUTLIVES_VARIABLE
from truthgpt_serve.cluster.haproxy.manager.survivor import end_silent, find_survivor

MAX_RESTARTS, WINDOW_S = 3, 60.0
"""An HAProxy that dies more often than this is left to Ray Serve, which starts all of it anew."""
_METHODS = ("_start_and_wait_for_haproxy", "_graceful_reload", "_is_running", "start", "stop")
_USED = ("_get_running_pid", "_is_our_haproxy")
_LIFE = "_truthgpt_life"

_logger = logging.getLogger("ray.serve")


@dataclass(slots=True)
class _Life:
    """What is known of one manager's HAProxy.

    Attributes:
        lock: Held while a process is started in the place of another.
        restarts_s: When it was started again.
        is_stopped: Whether its end is wanted.
        watches: The tasks that wait for the end of a process.
    """

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    restarts_s: deque[float] = field(default_factory=lambda: deque(maxlen=MAX_RESTARTS))
    is_stopped: bool = False
    watches: set[asyncio.Task[None]] = field(default_factory=set)

    def may_restart(self) -> bool:
        """Counts a restart, unless there were too many."""
        now_s = time.monotonic()
        if len(self.restarts_s) == MAX_RESTARTS and now_s - self.restarts_s[0] < WINDOW_S:
            return False
        self.restarts_s.append(now_s)
        return True


def restart_at_once(api: Any) -> None:
    """Changes Ray's class in this process; call it before one is made, once.

    Args:
        api: `ray.serve._private.haproxy.HAProxyApi`, of whichever release.

    Raises:
        AttributeError: This release of Ray has other methods.
    """
    missing = [name for name in (*_METHODS, *_USED) if not hasattr(api, name)]
    if missing:
        raise AttributeError(f"{api.__name__} has no {', '.join(missing)}: adapt {__file__}")
    begin, reload, stop = api.start, api._graceful_reload, api.stop
    start = api._start_and_wait_for_haproxy

    async def start_or_take_over(self: Any) -> None:
        survivor = await find_survivor(self)
        if survivor is not None:
            _logger.warning("HAProxy (process %d) outlived its manager: it goes on", survivor.pid)
            self._proc = survivor
            _begin_watch(self, survivor)
            return
        if self._proc is None:
            end_silent(self)
        await begin(self)

    async def start_and_watch(self: Any, *arguments: Any, **options: Any) -> Any:
        os.environ[OUTLIVES_VARIABLE] = "1"
        process = await start(self, *arguments, **options)
        _begin_watch(self, process)
        return process

    async def reload_or_start(self: Any) -> None:
        async with _life_of(self).lock:
            if self._proc is None or self._is_running():
                await reload(self)
            else:  # it died, and nobody answers whose place a new one could take
                self._proc = await self._start_and_wait_for_haproxy()

    async def stop_for_good(self: Any) -> None:
        _life_of(self).is_stopped = True
        await stop(self)

    api.start = start_or_take_over
    api._start_and_wait_for_haproxy = start_and_watch
    api._graceful_reload = reload_or_start
    api.stop = stop_for_good


def _life_of(api: Any) -> _Life:
    life: _Life = vars(api).setdefault(_LIFE, _Life())
    return life


def _begin_watch(api: Any, process: Any) -> None:
    life = _life_of(api)
    watch = asyncio.create_task(_watch(api, process))
    life.watches.add(watch)
    watch.add_done_callback(life.watches.discard)


async def _watch(api: Any, process: Any) -> None:
    """Starts HAProxy again when this process of it ends while it is the one that serves."""
    status = await process.wait()
    life = _life_of(api)
    async with life.lock:
        if life.is_stopped or api._proc is not process:
            return
        if not life.may_restart():
            _logger.error(
                "HAProxy (process %d) ended with status %d, after %d others in %g s: "
                "Ray Serve replaces it",
                *(process.pid, status, MAX_RESTARTS, WINDOW_S),
            )
            return
        _logger.warning(
            "HAProxy (process %d) ended with status %d: it is started again", process.pid, status
        )
        try:
            await api.start()
        except Exception as error:  # Ray's own checks see to the rest
            _logger.error("HAProxy cannot be started again, Ray Serve replaces it: %s", error)
        if life.is_stopped:  # meanwhile, when there was nothing to stop
            await api.stop()
