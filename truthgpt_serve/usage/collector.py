"""One process of the cluster keeps the usage of all replicas: a named actor on the head node.

The router makes the actor, or the replica that has usage first. It outlives both, and is started
again when it dies. Its file stays on the head node's disk. What is here blocks: call it from a
thread.
"""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from truthgpt_serve.usage.batch import KEEP_DAYS, Batch, UsageQuery
from truthgpt_serve.usage.place import find_file
from truthgpt_serve.usage.recorder import UsageRecorder

if TYPE_CHECKING:
    from truthgpt_serve.usage.database import StoreError

ACTOR_NAME = "truthgpt-serve-usage"
ACTOR_NAMESPACE = "truthgpt-serve"
SEND_TIMEOUT_S = 5.0
"""How long a batch waits to be taken. The next try waits for the same call, and sends no other."""
QUERY_TIMEOUT_S = 20.0
"""How long a query may take; the first includes the start of the actor's process."""
HEAD_NODE = {"node:__internal_head__": 0.001}
"""What only the head node has, so that the actor is where its file is, and comes back there."""


class CollectorError(Exception):
    """The usage is not taken, or cannot be read, now."""


class LateError(CollectorError):
    """There is no answer yet."""


class UsageKeeper:
    """The actor: a `UsageStore` that says what is wrong in words.

    Args:
        keys_file: As for `find_file`.
        file: As for `find_file`.
    """

    def __init__(self, keys_file: str, file: str | None) -> None:
        from truthgpt_serve.usage.store import UsageStore

        self._store = UsageStore(find_file(keys_file, file))

    def add(self, batch: Batch, keep_days: int) -> str:
        """Adds a batch; returns why it cannot, or an empty text."""
        self._store.keep_days = keep_days
        try:
            self._store.add(batch)
        except _store_error() as error:
            return str(error)
        return ""

    def query(self, query: UsageQuery) -> list[list[object]] | str:
        """Returns what `UsageStore.query` does, or why it cannot."""
        try:
            return self._store.query(query)
        except _store_error() as error:
            return str(error)


def _store_error() -> type[StoreError]:
    from truthgpt_serve.usage.database import StoreError

    return StoreError


class UsageCollector:
    """The actor, as one process of the service sees it.

    Args:
        keys_file: The file with the keys whose usage it is, absolute.
        file: Where the usage is kept; None as `find_file` says.
        keep_days: Days after which it is dropped.
    """

    def __init__(self, keys_file: str, file: str | None = None, keep_days: int = KEEP_DAYS) -> None:
        self._keys_file = keys_file
        self._file = file
        self._keep_days = keep_days
        self._lock = threading.Lock()
        self._actor: Any = None
        self._waiting: tuple[Batch, Any] | None = None

    def start(self) -> None:
        """Has the actor started, and does not wait for it.

        The router does: the actor would have the packages of a model's `runtime_env` too.

        Raises:
            CollectorError: Ray does not start it now.
        """
        self._find()

    def send(self, batch: Batch) -> None:
        """Hands a batch over; returns when it is on the disk. For one thread.

        Raises:
            CollectorError: It is not known to be kept; send it again.
        """
        if self._waiting is None or self._waiting[0] is not batch:
            self._waiting = (batch, self._find().add.remote(batch, self._keep_days))
        try:
            answer = self._wait(self._waiting[1], SEND_TIMEOUT_S)
        except LateError:
            raise
        except CollectorError:
            self._waiting = None
            raise
        self._waiting = None
        if answer:
            raise CollectorError(answer)

    def query(self, query: UsageQuery) -> list[list[object]]:
        """Returns what `UsageStore.query` does.

        Raises:
            CollectorError: It cannot be read now.
        """
        answer = self._wait(self._find().query.remote(query), QUERY_TIMEOUT_S)
        if isinstance(answer, str):
            raise CollectorError(answer)
        return list(answer)

    def _wait(self, call: Any, timeout_s: float) -> Any:
        import ray
        from ray.exceptions import GetTimeoutError, RayError

        try:
            return ray.get(call, timeout=timeout_s)
        except GetTimeoutError as error:
            message = f"the process that keeps it has not answered for {timeout_s:g} s"
            raise LateError(message) from error
        except RayError as error:
            self._actor = None
            message = f"the process that keeps it died ({type(error).__name__})"
            raise CollectorError(message) from error

    def _find(self) -> Any:
        """Returns the actor, which is made if there is none."""
        with self._lock:
            if self._actor is None:
                self._actor = _create(self._keys_file, self._file)
            return self._actor


def open_recorder(
    keys_file: str | Path, file: str | None = None, keep_days: int = KEEP_DAYS
) -> UsageRecorder:
    """Returns what counts the requests of this process and sends them to the cluster's actor.

    It starts nothing before the first request is counted.

    Args:
        keys_file: The file with the keys.
        file: Where the usage is kept; None as `find_file` says.
        keep_days: Days after which it is dropped.
    """
    keys = str(Path(keys_file).absolute())
    return UsageRecorder(UsageCollector(keys, file, keep_days).send)


def _create(keys_file: str, file: str | None) -> Any:
    import ray
    from ray.exceptions import RayError

    if not ray.is_initialized():  # else the call below would start a cluster of its own
        raise CollectorError("this process belongs to no Ray cluster")
    what = hashlib.sha256((file or keys_file).encode(errors="surrogateescape")).hexdigest()[:12]
    try:
        return (
            ray.remote(UsageKeeper)
            .options(
                name=f"{ACTOR_NAME}-{what}",  # with another file it is another actor
                namespace=ACTOR_NAMESPACE,
                get_if_exists=True,
                lifetime="detached",  # else it would end with the replica that made it
                num_cpus=0,
                resources=HEAD_NODE,
                max_restarts=-1,
            )
            .remote(keys_file, file)
        )
    except RayError as error:
        raise CollectorError(f"Ray does not start the process that keeps it: {error}") from error
