"""The processes that a running service cannot do without, and what to do when one of them dies.

Found by their command lines, so that it makes no difference who started or replaced them.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum

from truthgpt_serve.cluster.processes import (
    Process,
    find_run,
    is_alive,
    read_arguments,
    read_environment,
)

SCAN_PERIOD_S = 1.0
"""How often processes are looked for while the service starts, and while a part is missing."""
IDLE_SCAN_PERIOD_S = 15.0
"""How often otherwise, where there is a part that has never been there."""
RETURN_S = 120.0
"""How long Ray may take to replace a part by itself."""
DELAYS_S = (0.0, 1.0, 5.0, 15.0, 60.0)
"""How long a part that died waits before it is started again: the first time, the second, ..."""
DELAYS_WINDOW_S = 600.0
"""Deaths longer ago count no more."""


class Remedy(Enum):
    """What brings a part back."""

    RESTART = "the whole service starts again"
    RUN_AGAIN = "it is started again, the models go on"
    WAIT = "Ray Serve replaces it, the models go on"


@dataclass(frozen=True, slots=True)
class Part:
    """One process of the service.

    Attributes:
        name: What it is called in messages.
        marks: How one of its first arguments ends, or its title begins.
        remedy: What brings it back.
    """

    name: str
    marks: tuple[str, ...]
    remedy: Remedy

    def is_run_by(self, arguments: list[str]) -> bool:
        """Returns whether a process with these arguments is this part."""
        return any(
            argument.startswith(mark) if mark.startswith("ray::") else argument.endswith(mark)
            for argument in arguments[:3]
            for mark in self.marks
        )


PARTS = (
    Part("Ray's GCS", ("/ray/gcs/gcs_server",), Remedy.RESTART),
    Part("Ray's raylet", ("/ray/raylet/raylet",), Remedy.RESTART),
    # Their death ends the raylet.
    Part("Ray's dashboard agent", ("ray::DashboardAgent",), Remedy.RESTART),
    Part("Ray's runtime_env agent", ("ray::RuntimeEnvAgent",), Remedy.RESTART),
    Part("Ray's dashboard", ("/ray/dashboard/dashboard.py",), Remedy.RUN_AGAIN),
    Part("Ray's log monitor", ("/ray/_private/log_monitor.py",), Remedy.RUN_AGAIN),
    Part("Ray Serve's controller", ("ray::ServeController",), Remedy.WAIT),
    Part("Ray Serve's proxy manager", ("ray::HAProxyManager",), Remedy.WAIT),
    Part("Ray Serve's fallback proxy", ("ray::ProxyActor",), Remedy.WAIT),
)
"""The most significant first: what takes others with it is named, and not they."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a part.

    Attributes:
        text: What happened, in words.
        fatal: Whether only a new start of the whole service helps.
    """

    text: str
    fatal: bool = False


@dataclass(slots=True)
class _Life:
    """What is known of one part of one run.

    Attributes:
        process: It, while it lives.
        lost_s: When it was missed, while it is missed.
        arguments: With what it was started.
        environment: In what it was started.
        deaths_s: When it died, as far as that counts.
        again_s: When it is to be started again, or None.
    """

    process: Process | None = None
    lost_s: float | None = None
    arguments: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    deaths_s: list[float] = field(default_factory=list)
    again_s: float | None = None

    def is_gone(self) -> bool:
        """Returns whether it lived when last looked at, and lives no more."""
        return self.process is not None and not is_alive(self.process)

    def may_run_again(self, now_s: float) -> bool:
        """Counts a death; returns whether it is to be started again, and plans that."""
        self.deaths_s = [when for when in self.deaths_s if now_s - when < DELAYS_WINDOW_S]
        self.deaths_s.append(now_s)
        if len(self.deaths_s) > len(DELAYS_S):
            return False
        self.again_s = now_s + DELAYS_S[len(self.deaths_s) - 1]
        return True


class Watch:
    """Follows the parts of one run from the start on.

    Args:
        run_id: The run.
        return_s: How long Ray may take to replace a part by itself.
    """

    def __init__(self, run_id: str, *, return_s: float = RETURN_S) -> None:
        self._run_id = run_id
        self._return_s = return_s
        self._lives = {part.name: _Life() for part in PARTS}
        self._settled = False
        self._scanned_s = float("-inf")
        self._children: list[subprocess.Popen[bytes]] = []

    def settle(self) -> None:
        """Says that the service is complete: what is not there now is not waited for."""
        self._settled = True

    def seen(self) -> set[str]:
        """Returns the names of the parts that lived at the last look."""
        return {name for name, life in self._lives.items() if life.process is not None}

    def look(self) -> list[Event]:
        """Returns what happened since the last look, the most significant first."""
        self._children = [child for child in self._children if child.poll() is None]
        events = [event for part in PARTS if (event := self._check(part)) is not None]
        if any(event.fatal for event in events):
            return events
        missing = any(life.process is None for life in self._lives.values())
        if missing and time.monotonic() - self._scanned_s >= self._scan_period_s():
            events += self._scan(find_run(self._run_id))
            self._scanned_s = time.monotonic()
        return events

    def _scan_period_s(self) -> float:
        waits = not self._settled or any(life.lost_s for life in self._lives.values())
        return SCAN_PERIOD_S if waits else IDLE_SCAN_PERIOD_S

    def _check(self, part: Part) -> Event | None:
        life, now_s = self._lives[part.name], time.monotonic()
        if life.is_gone():
            return self._note_death(part, life, now_s)
        if life.again_s is not None and now_s >= life.again_s:
            life.again_s = None
            try:
                self._run_again(life)
            except OSError as error:  # it has to be there next time
                life.may_run_again(now_s)
                return Event(f"{part.name} cannot be started again: {error}")
        if life.lost_s is None or now_s - life.lost_s < self._return_s:
            return None
        life.lost_s = None
        text = f"{part.name} is not back after {self._return_s:g} s: {Remedy.RESTART.value}"
        return Event(text, fatal=True) if part.remedy is Remedy.WAIT else None

    def _note_death(self, part: Part, life: _Life, now_s: float) -> Event:
        died = f"{part.name} (process {life.process.pid if life.process else '?'}) died"
        life.process, life.lost_s = None, now_s
        if part.remedy is Remedy.RUN_AGAIN and not life.may_run_again(now_s):
            life.lost_s = None
            text = f"{died} {len(life.deaths_s)} times: it stays away, the models go on"
            return Event(f"{text}; start the service again to have it back")
        return Event(f"{died}: {part.remedy.value}", fatal=part.remedy is Remedy.RESTART)

    def _run_again(self, life: _Life) -> None:
        self._children.append(
            subprocess.Popen(
                life.arguments,
                env=life.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        )

    def _scan(self, processes: Iterable[Process]) -> list[Event]:
        events = []
        for process in processes:
            arguments = read_arguments(process.pid)
            part = next((part for part in PARTS if part.is_run_by(arguments)), None)
            if part is None or self._lives[part.name].process is not None:
                continue
            life = self._lives[part.name]
            if life.lost_s is not None:
                seconds = time.monotonic() - life.lost_s
                events.append(Event(f"{part.name} is back after {seconds:.0f} s"))
            life.process, life.lost_s = process, None
            life.arguments, life.environment = arguments, read_environment(process.pid)
        return events
