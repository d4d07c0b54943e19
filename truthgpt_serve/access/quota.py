"""Holds keys to their limits: of a minute, and of what runs at the same time.

Each request to a model counts once, at its replica, whatever way it came. All replicas of one
machine count together; several machines do so in Redis, and without it each counts for itself.
What a request counts with, beside as one request, is in `token_quota`.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from truthgpt_serve.access.counting.away_counters import AwayCounters
from truthgpt_serve.access.counting.charges import Charge, Standing
from truthgpt_serve.access.counting.counters import Counters
from truthgpt_serve.access.counting.redis_commands import SEPARATOR
from truthgpt_serve.access.counting.redis_counters import RedisCounters
from truthgpt_serve.access.identity import Identity, Limits
from truthgpt_serve.access.last_keys import shared_file
from truthgpt_serve.access.units import CONCURRENT, IMAGES, REQUESTS, TOKENS, Unit, limit_headers
from truthgpt_serve.errors import RateLimitError
from truthgpt_serve.http.asgi import Headers
from truthgpt_serve.usage.counted import note_refusal

logger = logging.getLogger(__name__)

_MAX_PLANS = 8192
_Counters = Counters | RedisCounters | AwayCounters


class _Plan:
    """What counts of one key at one model.

    Attributes:
        identity: Whose it is, as its file says now.
        requests: What a request counts with.
        limits: The limits of what it uses, each with the name of its count, by fields of `Limits`.
    """

    __slots__ = ("identity", "limits", "requests")

    def __init__(self, identity: Identity, limits: Sequence[tuple[str, Limits]]) -> None:
        self.identity = identity
        self.requests = [
            Charge(name, 1, each.requests_per_minute, each.max_concurrent)
            for name, each in limits
            if each.requests_per_minute is not None or each.max_concurrent is not None
        ]
        self.limits = {
            unit.field: [
                (f"{name}{SEPARATOR}{unit.suffix}", limit)
                for name, each in limits
                if (limit := getattr(each, unit.field)) is not None
            ]
            for unit in (TOKENS, IMAGES)
        }


class Quota:
    """The limits of all keys of one file.

    Args:
        keys_file: The file, which names the counters too.
        model: The model whose requests are counted here, for limits of a key and a model.
        store: Redis' address, to count for all machines together; None counts for this one.
        clock: The time, as `time.time` gives it.

    Attributes:
        shared: What counts in Redis, or None.
    """

    def __init__(
        self,
        keys_file: Path,
        model: str = "",
        *,
        store: str | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._clock = clock
        self._model = model
        self._local = _open_counters(keys_file)
        self._plans: dict[str, _Plan] = {}
        self.shared = None if store is None else RedisCounters(store)
        self._away = None if self.shared is None else AwayCounters(self._local, self.shared)

    async def admit(self, identity: Identity) -> Lease | None:
        """Counts a request; returns what ends it, or None for a key without limits of requests.

        Raises:
            RateLimitError: It is too much; nothing was counted.
        """
        charges = self._plan(identity).requests
        if not charges:
            return None
        counters, headers = await self._take(identity, REQUESTS, charges, self._clock())
        return Lease(counters, charges, headers, self._clock)

    async def reserve(self, identity: Identity, unit: Unit, amount: float) -> Reservation | None:
        """Counts what a request may use; returns what corrects it, or None for no such limit.

        A request that alone may use more than its limit is let in where nothing else counts.

        Args:
            identity: Whose request it is.
            unit: What it uses.
            amount: How much, at the most likely.

        Raises:
            RateLimitError: It is too much; nothing was counted.
        """
        charges = [
            Charge(name, min(amount, limit), limit, runs=False)
            for name, limit in self._plan(identity).limits[unit.field]
        ]
        if not charges:
            return None
        now_s = self._clock()
        counters, headers = await self._take(identity, unit, charges, now_s)
        return Reservation(counters, charges, amount, headers, self._clock, now_s)

    def is_limited(self, identity: Identity, unit: Unit) -> bool:
        """Returns whether a key has a limit of this unit."""
        return bool(self._plan(identity).limits[unit.field])

    def close(self) -> None:
        """Leaves the counters to the other processes."""
        self._local.close()
        if self.shared is not None:
            self.shared.close()

    def _plan(self, identity: Identity) -> _Plan:
        """Returns what counts of a key here, which is found once."""
        plan = self._plans.get(identity.name)
        if plan is None or plan.identity is not identity:
            if len(self._plans) >= _MAX_PLANS:
                self._plans.clear()
            plan = self._plans[identity.name] = _Plan(identity, self._limits(identity))
        return plan

    def _limits(self, identity: Identity) -> list[tuple[str, Limits]]:
        """Returns the limits that hold here, each with the name of its count."""
        found = [(identity.name, identity.limits)]
        of_model = identity.limits_of(self._model)
        if of_model is not None:
            found.append((f"{identity.name}{SEPARATOR}{self._model}", of_model))
        return found

    async def _take(
        self, identity: Identity, unit: Unit, charges: Sequence[Charge], now_s: float
    ) -> tuple[_Counters, Headers]:
        """Counts the charges; returns where, and the headers of the tightest limit of the unit."""
        counters: _Counters = self._local
        if self.shared is None or self._away is None:
            found = self._local.take_all(charges, now_s)
        elif (told := await self.shared.take_all(charges)) is not None:
            counters, found = self.shared, told
        else:
            counters, found = self._away, self._away.take_all(charges, now_s)
        tightest, most, fits = None, math.inf, True
        for charge, standing in zip(charges, found, strict=True):
            fits = fits and standing.fits
            if charge.limit is not None and charge.limit - standing.used < most:
                tightest, most = (charge.limit, standing), charge.limit - standing.used
        headers = [] if tightest is None else limit_headers(unit, *tightest)
        if fits:
            return counters, headers
        raise self._refusal(identity.name, unit, charges, found, headers)

    def _refusal(
        self,
        name: str,
        unit: Unit,
        charges: Sequence[Charge],
        found: Sequence[Standing],
        headers: Headers,
    ) -> RateLimitError:
        """Returns why the charges of a key do not fit."""
        for charge, standing in zip(charges, found, strict=True):
            where = (
                f" of the model {self._model!r}" if SEPARATOR + self._model in charge.name else ""
            )
            if standing.wait_s and charge.limit is not None:
                after_s = math.ceil(max(each.wait_s for each in found))
                may = unit.words.format(charge.limit)
                message = f"The key {name!r} may {may}{where}; try again in {after_s} s"
                headers = limit_headers(unit, charge.limit, standing)
                return _refusal(unit.name, message, headers, after_s)
            if standing.running < 0:
                return _refusal(
                    CONCURRENT,
                    f"The key {name!r} may have {charge.max_running} requests{where} at the same "
                    "time; try again when one of them has ended",
                    headers,
                )
        raise AssertionError("one of them does not fit")


class Lease:
    """One request that was let in.

    Attributes:
        headers: Of its answer: what the key may still send.
    """

    __slots__ = ("_charges", "_clock", "_counters", "_ended", "headers")

    def __init__(
        self,
        counters: _Counters,
        charges: Sequence[Charge],
        headers: Headers,
        clock: Callable[[], float],
    ) -> None:
        self._counters = counters
        self._charges = charges
        self._clock = clock
        self._ended = False
        self.headers = headers

    def end(self) -> None:
        """Ends it; once is enough."""
        if not self._ended:
            self._ended = True
            for charge in self._charges:
                self._counters.finish(charge.name, self._clock())


class Reservation:
    """What one request may use, until it is known what it used.

    Attributes:
        amount: How much that is.
        headers: Of its answer: what the key may still use.
    """

    __slots__ = ("_charges", "_clock", "_counters", "_settled", "_then_s", "amount", "headers")

    def __init__(
        self,
        counters: _Counters,
        charges: Sequence[Charge],
        amount: float,
        headers: Headers,
        clock: Callable[[], float],
        then_s: float,
    ) -> None:
        self.amount = amount
        self._counters = counters
        self._clock = clock
        self._charges = charges
        self._then_s = then_s
        self._settled = False
        self.headers = headers

    def settle(self, amount: float) -> None:
        """Charges what the request used in place of the estimate; only the first call counts.

        Args:
            amount: What it used, in the unit of the limits.
        """
        if not self._settled:
            self._settled = True
            now_s = self._clock()
            for charge in self._charges:
                more = amount - charge.amount
                self._counters.correct(charge.name, more, self._then_s, now_s)


def _refusal(
    reason: str, message: str, headers: Headers, after_s: int | None = None
) -> RateLimitError:
    note_refusal(reason)
    return RateLimitError(message, reason=reason, retry_after_s=after_s, headers=headers)


def _open_counters(keys_file: Path) -> Counters:
    """Opens the counters that this user's processes share for a file of keys."""
    try:
        return Counters(shared_file(keys_file))
    except OSError as error:
        logger.error("this process counts the requests of keys for itself alone: %s", error)
        return Counters(None)
