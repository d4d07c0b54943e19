"""How long a batch that could start waits for more requests.

A call of a model costs `fixed + each * size` seconds. While one runs, the next batch gathers by
itself, so waiting pays only right after a call, for the clients that have just been answered and
are about to ask again: of 32 clients the first to return would otherwise be computed alone. With
`n` requests here and `m` expected, a pause of `p` seconds raises the rate of answers when
`m / (fixed + each * m + p) > n / (fixed + each * n)`, which is `p < fixed * (m / n - 1)`. A model
whose time grows with the size of the batch alone therefore never waits, nor does a lone client.
"""

from __future__ import annotations

DECAY = 0.98
"""Weight of a call against the one after it: the last 50 decide."""
SAME_SIZE = 1e-3
"""Below this variance of the sizes, nothing tells the fixed cost from the cost of each request."""


class CallCost:
    """Splits the seconds of calls into a fixed part and one for each request, by least squares."""

    def __init__(self) -> None:
        self._weight = 0.0
        self._size = 0.0
        self._seconds = 0.0
        self._spread = 0.0
        self._product = 0.0

    def add(self, size: int, seconds: float) -> None:
        """Takes one call into account; the weighted means are moved by West's update (1979)."""
        self._weight = self._weight * DECAY + 1.0
        size_off = size - self._size
        seconds_off = seconds - self._seconds
        self._size += size_off / self._weight
        self._seconds += seconds_off / self._weight
        kept = 1.0 - 1.0 / self._weight
        self._spread = self._spread * DECAY + kept * size_off * size_off
        self._product = self._product * DECAY + kept * size_off * seconds_off

    @property
    def fixed_s(self) -> float:
        """Seconds that a call takes whatever its size; 0 as long as that is not known."""
        if self._spread <= SAME_SIZE * self._weight:
            return 0.0
        each_s = max(0.0, self._product / self._spread)
        return max(0.0, self._seconds - each_s * self._size)


class BatchWait:
    """Decides how long to wait before a batch.

    Args:
        max_batch_size: A batch of this size never waits.
        max_wait_s: The longest pause, in seconds; 0 for none.
    """

    def __init__(self, max_batch_size: int, max_wait_s: float) -> None:
        self._max_batch_size = max_batch_size
        self._max_wait_s = max_wait_s
        self._cost = CallCost()
        self._ended_s = float("-inf")
        self._num_expected = 0

    def called(self, size: int, seconds: float, *, num_waiting: int, now_s: float) -> None:
        """Takes a call into account that has just ended well.

        Args:
            size: Its requests.
            seconds: How long it took.
            num_waiting: Requests that wait now: with those answered, all that can be expected.
            now_s: The time, in seconds of any clock.
        """
        self._cost.add(size, seconds)
        self._num_expected = min(self._max_batch_size, size + num_waiting)
        self._ended_s = now_s

    def pause_s(self, num_waiting: int, now_s: float) -> float:
        """Returns the seconds that may still be waited for more requests; 0 to start now."""
        if num_waiting >= self._num_expected:
            return 0.0
        gain_s = self._cost.fixed_s * (self._num_expected / num_waiting - 1)
        return max(0.0, self._ended_s + min(self._max_wait_s, gain_s) - now_s)
