"""Adds up what requests used in a process, and hands it over in batches from a thread.

A batch is sent, unchanged, until it is taken: who takes it knows by its number which it has had.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable

from truthgpt_serve.usage.batch import COUNTS, HOUR_S, MAX_BATCH_ROWS, Batch, Place
from truthgpt_serve.usage.counted import Usage

logger = logging.getLogger(__name__)

PERIOD_S = 2.0
"""Between two batches: what is lost when the process is killed is at most twice as old."""
CLOSE_S = 3.0
MAX_ROWS = 5 * MAX_BATCH_ROWS
"""Rows that wait while no batch is taken, some 10 MB. Then hours are added up, and at last keys."""
OTHER_KEY = "-others"
"""Under which name more keys than fit are counted together; no key can have it."""


class UsageRecorder:
    """Counts the requests of this process.

    Args:
        send: Hands a batch over and returns when it is kept; raises if it is not. It runs in the
            recorder's thread and has a timeout of its own.
        period_s: Seconds between batches.
        max_rows: Most rows that wait.
        clock: The time, as `time.time` gives it.
    """

    def __init__(
        self,
        send: Callable[[Batch], object],
        *,
        period_s: float = PERIOD_S,
        max_rows: int = MAX_ROWS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._send = send
        self._period_s = period_s
        self._max_rows = max_rows
        self._clock = clock
        self._source = secrets.token_hex(16)
        self._sequence = 0
        self._lock = threading.Lock()
        self._rows: dict[Place, list[float]] = {}
        self._unsent: Batch | None = None
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self._reported = ""

    @property
    def is_kept(self) -> bool:
        """Whether the last batch was kept; else all waits in memory."""
        return not self._reported

    def add(self, key: str, model: str, usage: Usage, is_error: bool) -> None:
        """Counts a request that has ended; takes a microsecond or two.

        Args:
            key: Name of the key.
            model: Name of the model.
            usage: What it used.
            is_error: Whether its status was 400 or more, or its stream broke.
        """
        place = (int(self._clock()) // HOUR_S, key, model)
        with self._lock:
            counts = self._rows.get(place)
            if counts is None:
                counts = self._begin(place)
            counts[0] += 1
            if is_error:
                counts[1] += 1
            counts[2] += usage.prompt_tokens
            counts[3] += usage.cached_tokens
            counts[4] += usage.completion_tokens
            counts[5] += usage.images
            counts[6] += usage.megapixel_steps
            counts[7] += usage.audio_s

    def close(self, timeout_s: float = CLOSE_S) -> None:
        """Sends the rest, and waits for that."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join(timeout_s)
        if waiting := self._num_waiting():
            logger.error("the usage of %d requests is lost: %s", waiting, self._reported or "late")

    def _begin(self, place: Place) -> list[float]:
        """Returns the counts of a place that has none yet; the lock is held."""
        if self._thread is None and not self._closed.is_set():
            self._thread = threading.Thread(target=self._run, name="usage", daemon=True)
            self._thread.start()
        if len(self._rows) >= self._max_rows:
            self._add_hours_up(place[0])
        if len(self._rows) >= self._max_rows:
            place = (place[0], OTHER_KEY, place[2])
        return self._rows.setdefault(place, [0] * len(COUNTS))

    def _add_hours_up(self, hour: int) -> None:
        """Counts all that waits in one hour, so that there is one row for each key and model."""
        found: dict[Place, list[float]] = {}
        for (_, key, model), counts in self._rows.items():
            into = found.setdefault((hour, key, model), [0] * len(COUNTS))
            for at, count in enumerate(counts):
                into[at] += count
        self._rows = found

    def _run(self) -> None:
        while not self._closed.wait(self._period_s):
            while self._send_next():
                pass
        while self._send_next():
            pass

    def _send_next(self) -> bool:
        """Sends a batch, if there is one; returns whether another one may be due at once."""
        batch, was_late = self._unsent, self._unsent is not None
        if batch is None:
            batch = self._unsent = self._take()
        if batch is None:
            return False
        try:
            self._send(batch)
        except Exception as error:  # whatever it was, the batch is kept and sent again
            self._report(str(error) or type(error).__name__)
            return False
        self._unsent = None
        self._report("")
        return was_late or len(batch.rows) == MAX_BATCH_ROWS

    def _take(self) -> Batch | None:
        with self._lock:
            taken = list(self._rows)[:MAX_BATCH_ROWS]
            if not taken:
                return None
            self._sequence += 1
            rows = [(*place, *self._rows.pop(place)) for place in taken]
        return Batch(self._source, self._sequence, rows)  # type: ignore[arg-type]

    def _num_waiting(self) -> int:
        unsent = self._unsent
        with self._lock:
            number = sum(counts[0] for counts in self._rows.values())
        return int(number) + (sum(row[3] for row in unsent.rows) if unsent is not None else 0)

    def _report(self, problem: str) -> None:
        """Logs each problem once, as long as it lasts, and its end."""
        if problem and problem != self._reported:
            logger.error(
                "usage is not kept now, and waits in memory (%d requests); the next try is in "
                "%g s: %s",
                self._num_waiting(),
                self._period_s,
                problem,
            )
        elif self._reported and not problem:
            logger.warning("usage is kept again")
        self._reported = problem
