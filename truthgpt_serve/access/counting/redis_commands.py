"""What a process and a Redis or Valkey server that counts for all machines say to each other."""

from __future__ import annotations

import asyncio
import hashlib
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from truthgpt_serve.access.counting.charges import BUCKET_S, NUM_BUCKETS, WINDOW_S, Charge, Standing
from truthgpt_serve.access.counting.own_counts import Counts
from truthgpt_serve.access.counting.redis_scripts import CORRECT, RESTORE, RUNNING, TAKE

ANSWER_S = 0.25
"""Longest time of one trip to the server."""
CONNECT_S = 1.0
"""Longest time until there is a connection, and until the server has greeted: several trips."""
LEASE_S = 30.0
"""After which what a silent process runs is taken back; it speaks up three times as often."""
SEPARATOR = "\0"
"""Between the parts of a count's name, whose first is its key's; in no name of a key or model."""
PREFIX = "truthgpt:quota:"
MARK = f"{PREFIX}mark"
"""A key that is gone when the counts are: it lives as long after the last request."""
_MS = 1000
_MINUTE = (str(int(BUCKET_S * _MS)), str(NUM_BUCKETS))
_ANY_NUMBER = 10**9
_MARK_MS = int(NUM_BUCKETS * BUCKET_S * _MS)
LEASE_MS = str(int(LEASE_S * _MS))


class Commands:
    """Puts commands of one process into a pipeline of redis-py, by scripts that are loaded once.

    Args:
        process: A name of the process that no other one has.
    """

    def __init__(self, process: str) -> None:
        self._process = process
        self._hashes: tuple[str, ...] = ()

    async def load(self, client: Any) -> None:
        """Connects, and loads the scripts in one trip."""
        async with asyncio.timeout(2 * CONNECT_S), client.pipeline(transaction=False) as pipe:
            for text in (TAKE, CORRECT, RUNNING, RESTORE):
                pipe.script_load(text)
            self._hashes = tuple(await pipe.execute())

    async def try_out(self, client: Any, running: Mapping[str, int]) -> None:
        """Counts nothing under some names: a server may take the scripts, and not what they do.

        Args:
            client: The client.
            running: The names, and how many things of each run in this process.
        """
        async with asyncio.timeout(ANSWER_S), client.pipeline(transaction=False) as pipe:
            for name, number in running.items():
                self.run(pipe, name, number)
                self.take(pipe, [Charge(name, 0, None, _ANY_NUMBER, runs=False)], {})
            await pipe.execute()

    async def read_mark(self, client: Any) -> bytes:
        """Returns what the server's counts are known by; another one if they were lost."""
        async with asyncio.timeout(ANSWER_S), client.pipeline(transaction=False) as pipe:
            pipe.set(MARK, uuid.uuid4().hex, nx=True, px=_MARK_MS)
            pipe.get(MARK)
            mark: bytes | None = (await pipe.execute())[1]
        return mark or b""

    def keep_mark(self, pipe: Any) -> None:
        """Has the mark live on; the answer is 0 where it is gone."""
        pipe.pexpire(MARK, _MARK_MS)

    def take(self, pipe: Any, charges: Sequence[Charge], running: Mapping[str, int]) -> None:
        """Counts charges if all of them fit.

        Args:
            pipe: The pipeline.
            charges: The charges.
            running: How many things of a name run in this process with it.
        """
        keys: list[str] = []
        values: list[Any] = [self._process, *_MINUTE, LEASE_MS]
        for charge in charges:
            keys += _keys(charge.name)
            own: int | str = running[charge.name] if charge.runs else ""
            limits = (charge.limit, charge.max_running)
            values += [repr(float(charge.amount)), *("" if n is None else n for n in limits), own]
        self._put(pipe, 0, keys, values)

    def correct(self, pipe: Any, name: str, bucket: int, amount: float) -> None:
        """Corrects what was counted in a half second of this machine's clock."""
        age_s = max(0.0, time.time() - (bucket + 0.5) * BUCKET_S)
        if amount and age_s < WINDOW_S:
            values = [repr(amount), int(age_s * _MS), *_MINUTE]
            self._put(pipe, 1, [_keys(name)[0]], values)

    def run(self, pipe: Any, name: str, number: int) -> None:
        """Says how many things of a name run in this process."""
        self._put(pipe, 2, [_keys(name)[1]], [self._process, number, LEASE_MS])

    def restore(self, pipe: Any, name: str, counts: Counts) -> None:
        """Adds what was counted elsewhere."""
        now_s, values = time.time(), []
        for bucket, amount in counts.items():
            age_s = max(0.0, now_s - (bucket + 0.5) * BUCKET_S)
            values += [int(age_s * _MS), repr(amount)]
        self._put(pipe, 3, [_keys(name)[0]], [*_MINUTE, *values])

    def _put(self, pipe: Any, script: int, keys: Sequence[str], values: Sequence[Any]) -> None:
        if self._hashes:
            pipe.evalsha(self._hashes[script], len(keys), *keys, *values)


def connect(url: str) -> Any:
    """Returns redis-py's client of a server, which tries nothing twice."""
    # Only where it is used: it is one of the optional extras.
    from redis.asyncio import Redis
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    return Redis.from_url(
        url,
        socket_timeout=ANSWER_S,
        socket_connect_timeout=CONNECT_S,
        retry=Retry(NoBackoff(), 0),
        max_connections=2,
    )


def is_address(url: str) -> bool:
    """Returns whether redis-py takes an address; connects to nothing."""
    from redis import RedisError

    try:
        connect(url).connection_pool.make_connection()
    except (ValueError, TypeError, RedisError):  # the port, and options by their names and values
        return False
    return True


def _keys(name: str) -> tuple[str, str]:
    """Returns the server's keys of a count: of its minute, and of what runs.

    Those of one key's counts are in one slot of a cluster, by the part in braces.
    """
    owner = _digest(name.split(SEPARATOR, 1)[0])
    key = f"{PREFIX}{{{owner}}}:{_digest(name)}"
    return f"{key}:minute", f"{key}:running"


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def standing_of(answer: Sequence[Any]) -> Standing:
    """Returns how a name stands, as the server has answered."""
    used, wait_ms, reset_ms, running = answer
    return Standing(float(used), int(wait_ms) / _MS, int(reset_ms) / _MS, int(running))
