"""Deaths of one model's replicas on this node, and the requests that were in flight at them.

A folder of one JSON file, which every replica of the model reads and changes under a lock, and of
the records of those that live. All of it is bounded, and ends with Ray's session folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from truthgpt_serve.server.faults.cause import find_cause
from truthgpt_serve.server.faults.record import SUFFIX, take_remains

STRIKE_S = 600.0
"""How long a death counts against a request that was in flight."""
MAX_STRIKES = 8192
MAX_DEATHS = 16
_REFRESH_S = 1.0


@dataclass(frozen=True, slots=True)
class Death:
    """The end of one process, or of its engine.

    Attributes:
        at: Seconds since the machine started, which no clock that is set moves; for processes of
            this node, as the folder is.
        phase: `loading` or `serving`; `reported` for one whose cause became a start's error.
        cause: Why, in one line.
        version: Digest of the configuration that it ran with.
    """

    at: float
    phase: str
    cause: str
    version: str


@dataclass(slots=True)
class _State:
    deaths: list[Death] = field(default_factory=list)
    strikes: dict[str, tuple[int, float]] = field(default_factory=dict)

    def prune(self, now: float) -> None:
        self.deaths = self.deaths[-MAX_DEATHS:]
        fresh = {key: value for key, value in self.strikes.items() if value[1] > now - STRIKE_S}
        newest = sorted(fresh.items(), key=lambda item: item[1][1])[-MAX_STRIKES:]
        self.strikes = dict(newest)


class History:
    """What is known of a model's deaths on this node.

    Args:
        folder: The model's folder; it is made.
        version: Digest of the configuration: deaths of another one say nothing of this one.
    """

    def __init__(self, folder: Path, version: str) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.folder = folder
        self._version = version
        self._file = folder / "history.json"
        self._state = _State()
        self._read_at = float("-inf")
        self._stamp = (0, 0)

    def take_in(self, own: Path | None = None) -> None:
        """Adds the deaths of which records are left.

        Args:
            own: The record of this process.
        """
        with self._change() as state:
            for path in sorted(self.folder.glob(f"*{SUFFIX}")):
                if path == own or (remains := take_remains(path)) is None:
                    continue
                head = remains.head
                if head.get("counted") or head.get("version") != self._version:
                    continue
                state.deaths.append(
                    Death(time.monotonic(), str(head.get("phase")), find_cause(head), self._version)
                )
                _strike(state, remains.in_flight)

    def add(self, phase: str, cause: str, in_flight: Iterable[bytes] = ()) -> None:
        """Adds a death that this process sees itself."""
        with self._change() as state:
            state.deaths.append(Death(time.monotonic(), phase, cause, self._version))
            _strike(state, in_flight)

    def forgive(self, fingerprint: bytes) -> None:
        """Forgets a request's strikes: it was served, and all lived."""
        with self._change() as state:
            state.strikes.pop(fingerprint.hex(), None)

    def strikes(self, fingerprint: bytes) -> int:
        """Returns how often a process died with this request in flight, lately."""
        self._refresh()
        if not self._state.strikes:
            return 0
        number, at = self._state.strikes.get(fingerprint.hex(), (0, 0.0))
        return number if at > time.monotonic() - STRIKE_S else 0

    def deaths(self) -> list[Death]:
        """Returns the deaths with this configuration, the latest last."""
        self._refresh()
        return [death for death in self._state.deaths if death.version == self._version]

    def _refresh(self) -> None:
        """Reads the file again if another process changed it; looks once a second."""
        now = time.monotonic()
        if now - self._read_at < _REFRESH_S:
            return
        self._read_at = now
        with contextlib.suppress(OSError):
            status = self._file.stat()
            stamp = (status.st_mtime_ns, status.st_ino)
            if stamp != self._stamp:
                self._stamp, self._state = stamp, self._load()

    @contextlib.contextmanager
    def _change(self) -> Iterator[_State]:
        with (self.folder / "lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            state = self._load()
            yield state
            state.prune(time.monotonic())
            value = {"deaths": [asdict(death) for death in state.deaths], "strikes": state.strikes}
            work = self._file.with_suffix(f".{os.getpid()}")
            work.write_text(json.dumps(value))
            work.replace(self._file)
            self._state = state

    def _load(self) -> _State:
        """Returns what the file has, but what was before the machine's last start."""
        now = time.monotonic()
        try:
            value = json.loads(self._file.read_text())
            deaths = [Death(**death) for death in value["deaths"]]
            return _State(
                [death for death in deaths if death.at <= now],
                {
                    key: (int(number), float(at))
                    for key, (number, at) in value["strikes"].items()
                    if at <= now
                },
            )
        except (OSError, ValueError, KeyError, TypeError):
            return _State()


def _strike(state: _State, fingerprints: Iterable[bytes]) -> None:
    now = time.monotonic()
    for key in {fingerprint.hex() for fingerprint in fingerprints}:
        number, at = state.strikes.get(key, (0, 0.0))
        state.strikes[key] = (number + 1 if at > now - STRIKE_S else 1, now)
