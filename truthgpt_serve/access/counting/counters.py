"""Counts that all processes of one machine share: of the last minute, and of what runs now.

A minute is counted in half seconds, of which one more than a minute's is kept: no minute, wherever
it begins, has more than was let in by its count.

A process that counts often under a name takes a little more than it needs from the file and spends
that by itself, without a lock: a lease, of 0.5 % of the limit at most, in the present half second.
What is taken back of an earlier half second reaches the file as late as an unspent lease does.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from truthgpt_serve.access.counting.charges import BUCKET_S, WINDOW_S, Charge, Standing, time_until
from truthgpt_serve.access.counting.counter_file import CounterFile
from truthgpt_serve.access.counting.leases import FLUSH_S, Lease


class Counters:
    """The counts of one file.

    Args:
        path: The file, which is made if it is not there; None counts for this process alone.

    Raises:
        OSError: The file cannot be used.
    """

    def __init__(self, path: Path | None) -> None:
        self._file = CounterFile(path)
        self._threads = threading.Lock()
        self._leases: dict[str, Lease] = {}
        self._taken_back: dict[tuple[str, int], float] = {}
        self._num_processes = self._file.num_processes()
        self._is_closed = False
        self._lent = threading.Event()
        self._returning: threading.Thread | None = None

    def take(
        self, name: str, amount: float, limit: float | None, max_running: int | None, now_s: float
    ) -> Standing:
        """Counts an amount and one thing that runs, if both limits allow them; else nothing.

        Args:
            name: Whose count.
            amount: How much.
            limit: Most in a minute; None for no limit.
            max_running: Most at the same time; None for no limit.
            now_s: The time, as `time.time` gives it.
        """
        return self.take_all([Charge(name, amount, limit, max_running)], now_s)[0]

    def take_all(self, charges: Sequence[Charge], now_s: float) -> list[Standing]:
        """Counts all of these, if all limits allow it; else nothing.

        Args:
            charges: What to count, each under another name.
            now_s: The time, as `time.time` gives it.
        """
        with self._threads:
            if self._is_closed:
                return [Standing(0.0, 0.0, 0.0, 0) for _ in charges]
            return self._spend(charges, now_s) or self._take(charges, now_s)

    def _spend(self, charges: Sequence[Charge], now_s: float) -> list[Standing] | None:
        """Counts what leases have room for; returns None if the file is needed."""
        bucket = int(now_s / BUCKET_S)
        found: list[Standing] = []
        leases: list[Lease] = []
        for charge in charges:
            lease = self._leases.get(charge.name)
            if lease is None or lease.bucket != bucket or lease.room < charge.amount:
                return None
            leases.append(lease)
        for charge, lease in zip(charges, leases, strict=True):
            running = self._run_freely(charge) if charge.runs else 0
            if running < 0:
                self._take_back(charges[: len(found)])
                return None
            found.append(Standing(lease.used + charge.amount, 0.0, WINDOW_S, running))
        for charge, lease in zip(charges, leases, strict=True):
            lease.spend(charge.amount)
        return found

    def _run_freely(self, charge: Charge) -> int:
        """Has one thing more run, without the lock; returns how many then do.

        Returns:
            -1 if the lock is needed to know whether it may: each of the other processes may begin
            one at this moment. Nothing is counted then.
        """
        file, most = self._file, charge.max_running
        record = file.known(charge.name)
        if record < 0 or not file.is_own_column:
            return -1
        # Counted first: this process may be stopped between its word in the file and its look.
        file.run(record, 1)
        running = sum(file.running(record))
        if most is None or running + self._num_processes <= most:
            return running
        file.run(record, -1)
        return -1

    def _take_back(self, charges: Sequence[Charge]) -> None:
        for charge in charges:
            if charge.runs:
                self._file.run(self._file.known(charge.name), -1)

    def _begin(self, pairs: Sequence[tuple[Charge, int]]) -> bool:
        """Has things run; returns whether they may, with what other processes began meanwhile.

        This one may have been stopped between its look at the file and its word in it.

        Args:
            pairs: What to count, each with where its record begins.
        """
        places = [(record, charge.max_running) for charge, record in pairs if charge.runs]
        for record, _ in places:
            self._file.run(record, 1)
        if all(most is None or sum(self._file.running(at)) <= most for at, most in places):
            return True
        for record, _ in places:
            self._file.run(record, -1)
        return False

    def _take(self, charges: Sequence[Charge], now_s: float) -> list[Standing]:
        file = self._file
        with file.lock:
            self._flush()
            places = [file.find(charge.name, now_s) for charge in charges]
            pairs = list(zip(charges, places, strict=True))
            for charge, record in pairs:
                if (lease := self._leases.get(charge.name)) is not None:
                    file.add(record, -lease.give_back(), lease.bucket)
            found = [self._look(record, charge, now_s) for charge, record in pairs]
            if not all(standing.fits for standing in found):
                return found
            if not self._begin(pairs):
                return [
                    standing if charge.max_running is None else replace(standing, running=-1)
                    for charge, standing in zip(charges, found, strict=True)
                ]
            for (charge, record), standing in zip(pairs, found, strict=True):
                self._add(record, charge, standing, now_s)
            return found

    def _look(self, record: int, charge: Charge, now_s: float) -> Standing:
        """Returns how a name will stand if it is counted, or how it stands if it does not fit."""
        bucket = self._file.advance(record, now_s)
        counts, running = self._file.counts(record), sum(self._file.running(record))
        used, most, limit = sum(counts), charge.max_running, charge.limit
        if most is not None and running >= most:
            self._file.reap()
            running = sum(self._file.running(record))
        fits = limit is None or used + charge.amount <= limit
        free = most is None or running < most
        if fits and free:
            return Standing(used + charge.amount, 0.0, WINDOW_S, running + charge.runs)
        spare = 0.0 if limit is None else limit - charge.amount
        wait_s = 0.0 if fits else time_until(counts, bucket, spare, now_s)
        reset_s = time_until(counts, bucket, 0.0, now_s)
        return Standing(used, wait_s, reset_s, running if free else -1)

    def _add(self, record: int, charge: Charge, standing: Standing, now_s: float) -> None:
        lease = self._leases.get(charge.name)
        if lease is None:
            lease = self._leases[charge.name] = Lease()
        bucket = int(now_s / BUCKET_S)
        more = lease.take(charge, standing.used, bucket)
        self._file.add(record, charge.amount + more, bucket)
        self._follow()

    def correct(self, name: str, amount: float, then_s: float, now_s: float) -> None:
        """Corrects what was counted at an earlier time.

        What is more counts now, so that a long request counts for a minute from its end; what is
        less is taken back where it was counted, if that is still of this minute.

        Args:
            name: Whose count.
            amount: How much more, or less.
            then_s: When it was counted.
            now_s: The time.
        """
        at = int((now_s if amount > 0 else then_s) / BUCKET_S)
        with self._threads:
            if self._is_closed or not amount:
                return
            lease = self._leases.get(name)
            if lease is not None and lease.bucket == at and lease.correct(amount):
                return
            if amount < 0:  # the most frequent one: most requests use less than they may
                self._taken_back[name, at] = self._taken_back.get((name, at), 0.0) + amount
                self._follow()
                return
            with self._file.lock:
                record = self._file.find(name, now_s)
                self._file.advance(record, now_s)
                self._file.add(record, amount, at)

    def _flush(self) -> None:
        """Writes down what was taken back; call it with the lock."""
        while self._taken_back:
            (name, at), amount = self._taken_back.popitem()
            self._file.add(self._file.find(name, at * BUCKET_S), amount, at)

    def finish(self, name: str, now_s: float) -> None:
        """Takes back one thing that ran."""
        with self._threads:
            if self._is_closed:
                return
            record = self._file.known(name)
            if record >= 0 and self._file.is_own_column:  # nobody else writes that number
                self._file.run(record, -1)
                return
            with self._file.lock:
                self._file.run(self._file.find(name, now_s), -1)

    def close(self) -> None:
        """Takes back what of this process runs, and leaves the file to the others.

        What is counted afterwards is let in uncounted.
        """
        with self._threads:
            if self._is_closed:
                return
            self._return()
            self._is_closed = True
            self._file.close()
        self._lent.set()
        if self._returning is not None:
            self._returning.join(timeout=10 * FLUSH_S)

    def _follow(self) -> None:
        """Has a thread give back what is not spent."""
        if self._returning is None:
            self._returning = threading.Thread(target=self._run, name="counters", daemon=True)
            self._returning.start()
        self._lent.set()

    def _run(self) -> None:
        while self._lent.wait() and not self._is_closed:
            time.sleep(FLUSH_S)
            with self._threads:
                if not self._is_closed:
                    self._return()

    def _return(self) -> None:
        """Gives back what leases have not spent, and drops those that were not used."""
        file = self._file
        with file.lock:
            self._flush()
            for name, lease in list(self._leases.items()):
                if room := lease.give_back():
                    now_s = lease.bucket * BUCKET_S
                    file.add(file.find(name, now_s), -room, lease.bucket)
                if not lease.begin_period():
                    del self._leases[name]
        self._num_processes = file.num_processes()
        if not self._leases:
            self._lent.clear()
