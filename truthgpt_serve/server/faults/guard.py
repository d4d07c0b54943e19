"""What a replica does about deaths: its own record, those before it, and an engine that dies."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote

from truthgpt_serve.errors import ServerError
from truthgpt_serve.server.faults.card import CardWithDeath
from truthgpt_serve.server.faults.cause import count_oom_kills, stderr_file
from truthgpt_serve.server.faults.history import STRIKE_S, Death, History
from truthgpt_serve.server.faults.quarantine import Quarantine
from truthgpt_serve.server.faults.record import Record
from truthgpt_serve.threads import contained

logger = logging.getLogger(__name__)

LOOK_S = 0.25
"""How often an idle engine is checked: without requests nothing else shows that it died."""
FLUSH_S = 5.0
"""How long the answers of a dead engine may take to reach their clients."""
MAX_DEATHS_LOADING = 2
MAX_DEATHS_AT_ONCE = 3
"""So many deaths within ten minutes are replaced at once; the next ones after a growing pause."""
MAX_PAUSE_S = 30.0


class ReplicaGuard:
    """The deaths of one model's replicas, as one of them sees them.

    Args:
        name: The model name.
        cfg: Its configuration, as a nested dict.
        folder: Where records lie; by default in Ray's session folder on this node. Without one
            nothing is recorded.
        leave: Ends this process, given an exit code.
    """

    def __init__(
        self,
        name: str,
        cfg: Mapping[str, Any],
        *,
        folder: Path | None = None,
        leave: Callable[[int], NoReturn] = os._exit,
    ) -> None:
        self._name = name
        self._leave = leave
        self._record: Record | None = None
        self._history: History | None = None
        self._app: Quarantine | None = None
        self._watch: asyncio.Task[None] | None = None
        self._find_ended: Callable[[], str | None] = lambda: None
        self._cause: str | None = None
        self._last: Death | None = None
        folder = folder or _session_folder()
        if folder is None:
            return
        text = json.dumps(cfg, sort_keys=True, default=str)
        version = hashlib.sha256(text.encode()).hexdigest()[:16]
        try:
            self._history = History(folder / quote(name, safe=""), version)
            self._record = Record(
                self._history.folder,
                phase="loading",
                version=version,
                stderr=str(stderr_file() or ""),
                oom_kills=count_oom_kills(),
            )
        except OSError:
            logger.warning("deaths of model %r are not recorded in %s", name, folder, exc_info=True)
            self._history = None

    async def prepare(self) -> None:
        """Takes in what earlier processes left; waits when they died often.

        Raises:
            ServerError: The last two died while they loaded this configuration; the next process
                tries again.
        """
        history = self._history
        if history is None or self._record is None:
            return
        await asyncio.to_thread(history.take_in, self._record.path)
        _note_exits(self._record)
        deaths = history.deaths()
        self._last = deaths[-1] if deaths else None
        if self._last is None:
            return
        logger.warning("the last process of model %r: %s", self._name, describe(self._last))
        fresh = [death for death in deaths if death.at > self._last.at - STRIKE_S]
        loading = [death.phase == "loading" for death in fresh[-MAX_DEATHS_LOADING:]]
        if len(loading) == MAX_DEATHS_LOADING and all(loading):
            history.add("reported", self._last.cause)
            raise ServerError(
                f"the model's process died {MAX_DEATHS_LOADING} times while it loaded: "
                f"{self._last.cause}"
            )
        real = sum(death.phase != "reported" for death in fresh)
        if real > MAX_DEATHS_AT_ONCE:
            pause_s = min(2.0 ** (real - MAX_DEATHS_AT_ONCE), MAX_PAUSE_S)
            logger.warning("it died %d times lately: this one waits %g s", real, pause_s)
            await asyncio.sleep(pause_s)

    def wrap(self, app: Any, find_ended: Callable[[], str | None] | None) -> Any:
        """Returns the application with its requests recorded; the model is loaded.

        Args:
            app: The application.
            find_ended: Returns why the model's engine is dead for good, or None; quick. A model
                without an engine has none.
        """
        if self._history is None or self._record is None:
            return app
        self._record.note(phase="serving")
        if self.last_death is not None:
            app = CardWithDeath(app, self.last_death)
        self._app = Quarantine(app, self._record, self._history, self._look)
        if callable(find_ended):
            self._find_ended = find_ended
            self._watch = asyncio.create_task(self._keep_looking())
        return self._app

    @property
    def last_death(self) -> str | None:
        """The end of the process before this one, in one line."""
        return None if self._last is None else describe(self._last)

    def _look(self) -> str | None:
        """Returns why the engine is dead; counts the death against the requests in flight."""
        if self._cause is None and (cause := self._ask()) is not None:
            self._cause = cause
            logger.error("model %r: %s; its process is replaced", self._name, cause)
            if self._history is not None and self._record is not None:
                with contextlib.suppress(OSError):
                    self._history.add("serving", cause, self._record.in_flight())
                self._record.note(counted=True, cause=cause)
        return self._cause

    def _ask(self) -> str | None:
        try:
            cause = contained(self._find_ended)
        except Exception:  # a user's code: what it cannot say must not fail a request
            logger.exception("`fatal_error` of model %r failed; it is not asked again", self._name)
            self._find_ended = lambda: None
            return None
        return str(cause) if cause else None

    async def _keep_looking(self) -> None:
        while self._look() is None:
            await asyncio.sleep(LOOK_S)
        # Serve replaces a process that ended at once, and one that is sick after three checks.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FLUSH_S):
                while self._app is not None and self._app.num_ongoing:
                    await asyncio.sleep(0.02)
        await asyncio.sleep(LOOK_S)  # the last bytes are with the kernel
        logging.shutdown()
        self._leave(1)

    def close(self) -> None:
        """This process ends in good order: nothing of it is a death."""
        if self._watch is not None:
            self._watch.cancel()
        if self._record is not None:
            self._record.close()


def describe(death: Death) -> str:
    """Returns a death in one line."""
    return f"died while {death.phase}: {death.cause}"


def _session_folder() -> Path | None:
    """Returns a folder in that of Ray's session on this node, or None outside a Ray worker."""
    stderr = stderr_file()
    if stderr is None or stderr.parent.name != "logs":
        return None
    if not stderr.parent.parent.name.startswith("session_"):
        return None
    return stderr.parent.parent / "truthgpt-deaths"


def _note_exits(record: Record) -> None:
    """Has code that leaves by `os._exit` say so: nothing else is left of its exit code."""
    leave, pid = os._exit, os.getpid()

    def leave_noted(status: int) -> NoReturn:
        if os.getpid() == pid:  # forked children leave this way, too
            record.note(cause=f"it left by os._exit with exit code {status}")
        leave(status)

    os._exit = leave_noted
