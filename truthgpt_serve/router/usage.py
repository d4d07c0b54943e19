"""`GET /v1/usage`: what all keys used, for keys that may read it."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import date, timedelta
from typing import Any
from urllib.parse import parse_qsl

from truthgpt_serve.access.identity import Identity
from truthgpt_serve.access.moments import read_moment
from truthgpt_serve.errors import (
    OverloadedError,
    PermissionDeniedError,
    RequestError,
    RouteNotFoundError,
    UnavailableError,
)
from truthgpt_serve.http.asgi import Send, send_json
from truthgpt_serve.usage.batch import COUNTS, DAY_HOURS, HOUR_S, UsageQuery
from truthgpt_serve.usage.collector import CollectorError
from truthgpt_serve.wording import shown, suggest

PATH = "/v1/usage"
Fetch = Callable[[UsageQuery], list[list[Any]]]
"""Returns what the collector says; blocks. Raises CollectorError."""

GROUPS = ("day", "key", "model")
PARAMETERS = ("start", "end", "group_by", "limit")
DEFAULT_DAYS = 30
DEFAULT_LIMIT, MAX_LIMIT = 1000, 10_000
MAX_PARAMETERS = 16
MAX_WAITING = 8
TIMEOUT_S = 45.0
NUM_THREADS = 2
_SECONDS = re.compile(r"[0-9]{9,11}")
_FORM = "write it like 2027-01-31, 2027-01-31T12:00:00Z or as seconds since the epoch"


class UsageRoute:
    """Answers the route.

    Args:
        fetch: Asks the collector, in a thread; None where the service asks for no keys.
        clock: The time, as `time.time` gives it.
    """

    def __init__(self, fetch: Fetch | None, *, clock: Callable[[], float] = time.time) -> None:
        self._fetch = fetch
        self._clock = clock
        self._threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="usage")
        self._num_waiting = 0

    async def answer(self, identity: Identity | None, query: bytes, send: Send) -> None:
        """Answers one request.

        Args:
            identity: Who asks; None where the service asks for no keys.
            query: The query of its address.
            send: ASGI `send`.

        Raises:
            RouteNotFoundError: There are no keys.
            PermissionDeniedError: The key may not read it.
            RequestError: A parameter is wrong.
            OverloadedError: Too many ask.
            UnavailableError: The usage cannot be read now.
        """
        if self._fetch is None or identity is None:
            raise RouteNotFoundError(
                "usage is counted for each API key, and this service asks for none (docs/keys.md)"
            )
        if not identity.admin:
            raise PermissionDeniedError(
                f"the key {identity.name!r} may not read what the keys use; make one that may with "
                "`truthgpt keys add NAME --admin`"
            )
        asked = read_query(query, self._clock())
        more = UsageQuery(asked.start_hour, asked.end_hour, asked.group_by, asked.limit + 1)
        await send_json(send, _shape(asked, await self._ask(self._fetch, more)))

    async def _ask(self, fetch: Fetch, query: UsageQuery) -> list[list[Any]]:
        if self._num_waiting >= MAX_WAITING:
            raise OverloadedError(f"{MAX_WAITING} requests for {PATH} are being answered")
        self._num_waiting += 1
        work = asyncio.get_running_loop().run_in_executor(self._threads, fetch, query)
        work.add_done_callback(self._done)
        try:
            return await asyncio.wait_for(asyncio.shield(work), TIMEOUT_S)
        except (CollectorError, TimeoutError) as error:
            reason = str(error) or f"no answer within {TIMEOUT_S:g} s"
            message = f"the usage cannot be read now: {reason}"
            raise UnavailableError(message, code="usage_unavailable") from error

    def _done(self, work: asyncio.Future[Any]) -> None:
        self._num_waiting -= 1
        if not work.cancelled():
            work.exception()  # whoever asked may be gone


def read_query(query: bytes, now_s: float) -> UsageQuery:
    """Returns what the query of an address asks for; the hours that it touches count whole.

    Args:
        query: `start`, `end`, `group_by` and `limit`, each of them optional.
        now_s: The time.

    Raises:
        RequestError: A parameter is wrong.
    """
    given = _parameters(query)
    end_s = _seconds(given["end"], "end") if "end" in given else int(now_s) + 1
    start_s = end_s - DEFAULT_DAYS * DAY_HOURS * HOUR_S
    if "start" in given:
        start_s = _seconds(given["start"], "start")
    if end_s < 0:
        raise RequestError(f"must not be before 1970, as {shown(given['end'])} is", param="end")
    if start_s >= end_s:
        raise RequestError("must be before `end`, which does not count itself", param="start")
    limit = DEFAULT_LIMIT
    if "limit" in given:
        limit = _limit(given["limit"])
    return UsageQuery(
        max(0, start_s // HOUR_S),
        -(-end_s // HOUR_S),
        _groups(given.get("group_by", "")),
        limit,
    )


def _parameters(query: bytes) -> dict[str, str]:
    """Returns the parameters; several `group_by` are one with commas."""
    try:
        pairs = parse_qsl(
            query.decode("ascii"), keep_blank_values=True, max_num_fields=MAX_PARAMETERS
        )
    except ValueError as error:
        message = f"the query is no list of at most {MAX_PARAMETERS} parameters: {error}"
        raise RequestError(message) from error
    found: dict[str, str] = {}
    for name, value in pairs:
        if name not in PARAMETERS:
            fix = suggest(name, PARAMETERS)
            raise RequestError(f"unknown parameter {shown(name)} ({fix})", param=name[:80])
        if name in found and name != "group_by":
            raise RequestError("is given twice", param=name)
        found[name] = f"{found[name]},{value}" if name in found else value
    return found


def _seconds(text: str, param: str) -> int:
    if _SECONDS.fullmatch(text):
        return int(text)
    try:
        if text.isdigit():
            raise ValueError(text)
        return int(read_moment(text).timestamp())
    except (ValueError, OverflowError) as error:
        plus = "; a `+` in an address is written %2B" if " " in text else ""
        raise RequestError(f"{shown(text)} is no moment: {_FORM}{plus}", param=param) from error


def _limit(text: str) -> int:
    limit = int(text) if re.fullmatch(r"[0-9]{1,6}", text) else 0
    if not 1 <= limit <= MAX_LIMIT:
        message = f"must be a whole number from 1 to {MAX_LIMIT}, not {shown(text)}"
        raise RequestError(message, param="limit")
    return limit


def _groups(text: str) -> tuple[str, ...]:
    names = [name.strip() for name in text.split(",")] if text else []
    for name in names:
        if name not in GROUPS:
            message = f"must be of {', '.join(GROUPS)}, not {shown(name)}"
            raise RequestError(message, param="group_by")
    if len(set(names)) < len(names):
        raise RequestError("names a group twice", param="group_by")
    return tuple(names)


def _shape(asked: UsageQuery, rows: list[list[Any]]) -> dict[str, Any]:
    return {
        "object": "list",
        "start": asked.start_hour * HOUR_S,
        "end": asked.end_hour * HOUR_S,
        "group_by": list(asked.group_by),
        "data": [_group(asked.group_by, row) for row in rows[: asked.limit]],
        "has_more": len(rows) > asked.limit,
    }


def _group(group_by: tuple[str, ...], row: list[Any]) -> dict[str, Any]:
    found = {"object": "usage", **dict(zip((*group_by, *COUNTS), row, strict=True))}
    if "day" in found:
        found["day"] = (date(1970, 1, 1) + timedelta(days=found["day"])).isoformat()
    for name in ("megapixel_steps", "audio_s"):
        found[name] = round(float(found[name]), 6)
    return found
