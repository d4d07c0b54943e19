"""How long one relayed request may take, be held, and wait for a client that does not read."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from truthgpt_serve.config import RouterConfig
from truthgpt_serve.errors import TruthGPTError, UnavailableError, late_answer
from truthgpt_serve.http.asgi import UNREAD_TIMEOUT_S
from truthgpt_serve.router.upstream import UpstreamConnection

HOLD_RECHECK_S = 2.0


class Deadline:
    """The limits of one exchange; `set` starts them.

    Args:
        connection: The connection that carries it.
        model: The model name, for messages and for the two functions.
        config: Timeouts.
        is_running: Whether a model has a running replica, by name.
        is_draining: Whether it has one that only finishes what it has.
        patience: Ends the relay's task. A task that waits for its client to read sees no error of
            the connection.
    """

    def __init__(
        self,
        connection: UpstreamConnection,
        model: str,
        config: RouterConfig,
        is_running: Callable[[str], bool],
        is_draining: Callable[[str], bool],
        patience: asyncio.Timeout,
    ) -> None:
        self._connection = connection
        self._model = model
        self._config = config
        self._is_running = is_running
        self._is_draining = is_draining
        self._patience = patience
        self._started_s = time.monotonic()
        # A request that came to a running replica is at work there, also while that one drains.
        self._began_running = is_running(model)
        self._held_since_s = None if self._began_running else self._started_s

    def set(self) -> None:
        """Starts the limits; clearing the connection's deadline ends them."""
        config = self._config
        first_s = min(config.hold_timeout_s, config.request_timeout_s)
        self._connection.set_deadline(first_s, self._check)

    def _check(self) -> TruthGPTError | float:
        """Returns what is over, or in how many seconds to ask again."""
        config, now_s = self._config, time.monotonic()
        waited_s = now_s - self._started_s
        if waited_s >= config.request_timeout_s:
            self._patience.reschedule(asyncio.get_running_loop().time() + UNREAD_TIMEOUT_S)
            return late_answer(self._model, config.request_timeout_s)
        self._held_since_s = (self._held_since_s or now_s) if self._is_held() else None
        hold_s = config.hold_timeout_s
        if self._held_since_s is not None and now_s - self._held_since_s >= hold_s:
            return UnavailableError(
                f"The model {self._model!r} had no running replica for {hold_s:g} s: "
                f"`truthgpt why {self._model}` says why",
                retry_after_s=int(HOLD_RECHECK_S) + 3,
            )
        rest_s = config.request_timeout_s - waited_s
        return rest_s if self._connection.has_headers else min(rest_s, HOLD_RECHECK_S)

    def _is_held(self) -> bool:
        if self._connection.has_headers or self._is_running(self._model):
            return False
        return not (self._began_running and self._is_draining(self._model))
