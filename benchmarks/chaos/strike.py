"""Kills or stops one process under load, and says which requests that cost."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.chaos.load import Load, Sent
from benchmarks.chaos.parts import KINDS, Holds, Kind, listening_ports
from benchmarks.chaos.sessions import clients_of
from benchmarks.chaos.words import read_notes
from truthgpt_serve.cluster.processes import Process, is_alive, send_signal

STOP_S = 5.0
CALM_S = 3.0
LIMIT_S = 420.0
POLL_S = 0.1
SAMPLE_S = 0.3
ARRIVES_S = 1.0
"""How long a request may be on its way to a router, before HAProxy lists it there."""
REPLACED_S = 20.0
STUCK_S = 10.0
"""No request takes so long, unless it hangs."""
HAPROXY = next(kind for kind in KINDS if kind.name == "haproxy")


@dataclass(slots=True)
class Strike:
    """What was done to which process, and what came of it.

    Attributes:
        kind: The kind of the process, or what was done to the machine.
        how: `kill`, `stop` or `fill`.
        began_s: When, on the monotonic clock.
        held: Numbers of the requests that the process held.
        failed_held: Requests of these that failed.
        failed_elsewhere: All other requests that failed.
        failed_away: Requests that were sent while the process that carries all was away.
        recovery_s: Time until all answers were good again; 0 if none was bad.
        back_s: Time until the process was there again; None if it is not.
        faults: What was wrong with the answers, how often.
        is_well: Whether all was well again within `LIMIT_S`.
    """

    kind: str
    how: str
    began_s: float
    held: set[int] = field(default_factory=set)
    failed_held: int = 0
    failed_elsewhere: int = 0
    failed_away: int = 0
    recovery_s: float = 0.0
    back_s: float | None = None
    faults: Counter[str] = field(default_factory=Counter)
    is_well: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Returns what is written and shown."""
        return {
            "kind": self.kind,
            "how": self.how,
            "held": len(self.held),
            "failed_held": self.failed_held,
            "failed_elsewhere": self.failed_elsewhere,
            "failed_while_away": self.failed_away,
            "recovery_s": round(self.recovery_s, 1),
            "back_s": None if self.back_s is None else round(self.back_s, 1),
            "faults": dict(self.faults),
            "is_well": self.is_well,
        }

    def judge(self, requests: Iterable[Sent], holds: Holds) -> None:
        """Counts the requests that failed after it, by whose they were."""
        for sent in requests:
            if sent.ended_s is None or sent.ended_s < self.began_s or not sent.fault:
                continue
            self.recovery_s = max(self.recovery_s, sent.ended_s - self.began_s)
            if sent.number in self.held:
                self.failed_held += 1
            elif holds is Holds.ALL:
                self.failed_away += 1
            else:
                self.failed_elsewhere += 1
            where = "" if sent.number in self.held else f" ({sent.way})"
            self.faults[f"{sent.fault}{where}"] += 1


@dataclass(frozen=True)
class Target:
    """A running service under load.

    Attributes:
        run_id: Its run; no process of another is touched.
        notes: The folder in which the model notes what came to which process.
        load: The clients.
        calm_s: All is well after so long without a bad answer.
    """

    run_id: str
    notes: Path
    load: Load
    calm_s: float = CALM_S

    def strike(self, kind: Kind, how: str, *, stop_s: float = STOP_S) -> Strike:
        """Strikes the newest process of a kind, and waits until all is well again.

        Args:
            kind: Which.
            how: `kill`, or `stop`, after which it goes on.
            stop_s: How long it is stopped.

        Raises:
            RuntimeError: There is no such process.
        """
        strike, processes, ports = self._aim(kind, how)
        victim = processes[-1]
        gone_s = None
        if how == "kill":
            send_signal(victim, signal.SIGKILL)
            while is_alive(victim):
                time.sleep(0.01)
            gone_s = time.monotonic()
        else:
            self._stop(strike, kind, victim.pid, ports, stop_s)
        strike.held |= self._noted(kind, victim.pid, strike.began_s)
        others = {process.pid for process in processes if process != victim}
        self._settle(strike, lambda: self._is_back(kind, victim.pid, how, len(others) + 1))
        if gone_s is not None and kind.holds is Holds.SOME:
            strike.held |= self._in_transit(kind, strike.began_s, gone_s)
        strike.judge(self.load.requests[:], kind.holds)
        return strike

    def fill(self, name: str, fill: Callable[[], None], free: Callable[[], None]) -> Strike:
        """Takes something from all processes for a while, such as the disk."""
        strike = Strike(name, "fill", time.monotonic())
        fill()
        time.sleep(3 * STOP_S)
        free()
        self._settle(strike, lambda: True)
        strike.judge(self.load.requests[:], Holds.NONE)
        return strike

    def _stop(self, strike: Strike, kind: Kind, pid: int, ports: set[int], stop_s: float) -> None:
        victim = psutil.Process(pid)
        victim.suspend()
        try:
            until_s = time.monotonic() + stop_s
            while time.monotonic() < until_s:
                time.sleep(SAMPLE_S)
                strike.held |= self._held(kind, pid, ports)
        finally:
            with suppress(psutil.NoSuchProcess):
                victim.resume()

    def _aim(self, kind: Kind, how: str) -> tuple[Strike, list[Process], set[int]]:
        """Returns a strike with what the newest process of a kind holds, the processes, and ports.

        An HAProxy that was replaced goes on with its requests, where nothing can see them, and the
        next replica that is ready may have it replaced at any moment. If so, this looks again.
        """
        deadline = time.monotonic() + REPLACED_S
        while True:
            began_s = time.monotonic()
            before = self._find_haproxy()
            processes = kind.find(self.run_id)
            if not processes:
                raise RuntimeError(f"the service has no process of the kind {kind.name}")
            pid = processes[-1].pid
            ports = listening_ports(pid) if kind.holds is Holds.SOME else set()
            held = self._held(kind, pid, ports)
            if (len(before) == 1 and before == self._find_haproxy()) or began_s > deadline:
                return Strike(kind.name, how, began_s, held), processes, ports
            time.sleep(POLL_S)

    def _find_haproxy(self) -> list[int]:
        return [process.pid for process in HAPROXY.find(self.run_id)]

    def _in_flight(self, at_s: float) -> list[Sent]:
        return [sent for sent in self.load.requests[:] if sent.is_in_flight(at_s)]

    def _held(self, kind: Kind, pid: int, ports: set[int]) -> set[int]:
        """Returns the requests in flight that are this process's now."""
        now_s = time.monotonic()
        if kind.holds is Holds.ALL:
            return {sent.number for sent in self._in_flight(now_s)}
        if kind.holds is Holds.NONE:
            return set()
        clients = clients_of(self.run_id, ports)
        sessions = {sent.number for sent in self._in_flight(now_s) if sent.port in clients}
        return sessions | self._noted(kind, pid, now_s)

    def _noted(self, kind: Kind, pid: int, since_s: float) -> set[int]:
        """Returns the requests that ended no sooner and that the model noted for this process."""
        if kind.name != "replica":
            return set()
        notes = read_notes(self.notes)
        return {
            sent.number
            for sent in self.load.requests[:]
            if notes.get(sent.number) == pid and not sent.has_ended(since_s)
        }

    def _in_transit(self, kind: Kind, began_s: float, gone_s: float) -> set[int]:
        """Returns what failed of what was sent while the process died.

        Its port takes connections until it is gone, so these reached it as far as anyone can know:
        of a replica those that came to no other, of a router those that began when HAProxy listed
        its sessions, or later.
        """
        notes = read_notes(self.notes)
        failed = [
            sent
            for sent in self.load.requests[:]
            if sent.fault and sent.began_s <= gone_s and not sent.has_ended(began_s)
        ]
        if kind.name == "router":
            found = [s for s in failed if s.way == "router" and s.began_s >= began_s - ARRIVES_S]
        else:
            found = [sent for sent in failed if sent.number not in notes]
        return {sent.number for sent in found}

    def _is_back(self, kind: Kind, pid: int, how: str, number: int) -> bool:
        found = kind.find(self.run_id)
        return len(found) >= number and (how != "kill" or all(each.pid != pid for each in found))

    def _settle(self, strike: Strike, is_back: Callable[[], bool]) -> None:
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline:
            time.sleep(POLL_S)
            if strike.back_s is None and is_back():
                strike.back_s = time.monotonic() - strike.began_s
            if strike.back_s is not None and self._is_calm(strike):
                return
        strike.is_well = False

    def _is_calm(self, strike: Strike) -> bool:
        """Whether every way had good answers lately, and none a bad one."""
        since_s = time.monotonic() - self.calm_s
        if since_s < strike.began_s:
            return False
        ended = [sent for sent in self.load.requests[:] if sent.ended_s and sent.ended_s >= since_s]
        stuck = any(
            sent.ended_s is None and sent.began_s < since_s - STUCK_S
            for sent in self.load.requests[:]
        )
        ways = {sent.way for sent in ended}
        return not stuck and not any(sent.fault for sent in ended) and len(ways) == 3
