"""What a process has taken of a count beyond what it needed, to spend it without asking again."""

from __future__ import annotations

import math

from truthgpt_serve.access.counting.charges import Charge

SHARE = 0.005
"""How much of a limit one process may hold unspent: others are refused that much too early."""
FLUSH_S = 0.25
"""How often what is not spent is given back."""


class Lease:
    """What a process holds of one count.

    Attributes:
        bucket: Where it was counted, in half seconds since the epoch; it is spent in that time.
        room: How much is not spent.
        used: How much of the minute is, as far as this process knows.
    """

    __slots__ = ("_before", "_most", "_number", "_spent", "bucket", "room", "used")

    def __init__(self) -> None:
        self.bucket = -1
        self.room = self.used = 0.0
        self._before = self._spent = 0.0
        self._most = 0.0
        self._number = 0

    def take(self, charge: Charge, used: float, bucket: int) -> float:
        """Notes what was counted; returns how much more to count, which is then held.

        Only who counts several times a period holds anything, and as much as it has needed lately.

        Args:
            charge: What was counted.
            used: What of the minute is used then.
            bucket: Where it is counted.
        """
        self._number += 1
        self._spent += charge.amount
        self.bucket, self.used, self.room = bucket, used, 0.0
        limit = math.inf if charge.limit is None else charge.limit
        self._most = SHARE * limit
        wanted = self._before or (self._spent if self._number > 1 else 0.0)
        more = min(max(wanted, self._spent), self._most, (limit - used) / 2) if wanted else 0.0
        self.room = more if more >= charge.amount else 0.0
        return self.room

    def spend(self, amount: float) -> None:
        """Spends what there is room for."""
        self._number += 1
        self._spent += amount
        self.room -= amount
        self.used += amount

    def correct(self, amount: float) -> bool:
        """Counts more of what was spent, or less; returns whether that is possible here."""
        room = self.room - amount
        if not self.room or not 0 <= room <= self._most:
            return False
        self.room = room
        self.used += amount
        return True

    def give_back(self) -> float:
        """Returns what is not spent, which then is not held any more."""
        room, self.room = self.room, 0.0
        return room

    def begin_period(self) -> bool:
        """Begins to count what is needed anew; returns whether there was anything."""
        number, self._number = self._number, 0
        self._before, self._spent = self._spent, 0.0
        return number > 0
