"""Files that every node of a Ray cluster can fetch: they lie in one named actor.

The actor is made when the first file comes, outlives the replicas that brought files, and ends with
the cluster; if its process dies, the files are gone.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import ray
from ray.exceptions import GetTimeoutError, RayError

from truthgpt_serve.errors import UnavailableError
from truthgpt_serve.http.file_store import LocalFileStore, StoredFile, check_room, create_file_id

ACTOR_NAME = "truthgpt-serve-files"
ACTOR_NAMESPACE = "truthgpt-serve"
CALL_TIMEOUT_S = 20.0
"""How long one call may take; the first includes the start of the actor's process."""
NUM_THREADS = 4

T = TypeVar("T")


class FileKeeper:
    """The actor: a `LocalFileStore` whose methods take and return plain values."""

    def __init__(self) -> None:
        self._store = LocalFileStore()

    async def put(
        self,
        file_id: str,
        data: bytes,
        content_type: str,
        expires_at_s: float,
        group: str,
        max_bytes: int,
    ) -> None:
        """Keeps a file under this id; the same id twice keeps one."""
        self._store.keep(file_id, StoredFile(data, content_type, expires_at_s), group, max_bytes)

    async def get(self, file_id: str) -> tuple[bytes, str, float] | None:
        """Returns the fields of a `StoredFile`, or None."""
        file = await self._store.get(file_id)
        return None if file is None else (file.data, file.content_type, file.expires_at_s)


class SharedFiles:
    """A `FileStore` for the whole cluster; made in any process that has joined it.

    Calls run in threads of their own: Ray blocks while its object store is full.
    """

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="shared-files")
        self._lock = threading.Lock()
        self._actor: Any = None

    async def put(
        self, data: bytes, content_type: str, *, group: str, expiry_s: float, max_bytes: int
    ) -> str:
        """See `FileStore.put`."""
        check_room(len(data), max_bytes)
        expires_at_s = time.time() + expiry_s
        file_id = create_file_id(content_type, expires_at_s)

        def put() -> None:
            call = self._create().put.remote(
                file_id, data, content_type, expires_at_s, group, max_bytes
            )
            ray.get(call, timeout=CALL_TIMEOUT_S)

        await self._run(put)
        return file_id

    async def get(self, file_id: str) -> StoredFile | None:
        """See `FileStore.get`."""

        def get() -> StoredFile | None:
            actor = self._find()
            if actor is None:  # no file was ever stored
                return None
            fields = ray.get(actor.get.remote(file_id), timeout=CALL_TIMEOUT_S)
            return None if fields is None else StoredFile(*fields)

        return await self._run(get)

    async def _run(self, function: Callable[[], T]) -> T:
        work = asyncio.get_running_loop().run_in_executor(self._threads, function)
        try:
            return await asyncio.wait_for(work, 2 * CALL_TIMEOUT_S)
        except (RayError, GetTimeoutError, TimeoutError) as error:
            self._actor = None
            raise UnavailableError(
                "the store of `url` results does not answer; try again, or ask for b64_json",
                retry_after_s=5,
            ) from error

    def _find(self) -> Any:
        if self._actor is None:
            try:
                self._actor = ray.get_actor(ACTOR_NAME, namespace=ACTOR_NAMESPACE)
            except ValueError:  # Ray's way to say that there is none
                return None
        return self._actor

    def _create(self) -> Any:
        with self._lock:
            if self._actor is None:
                self._actor = (
                    ray.remote(FileKeeper)
                    .options(
                        name=ACTOR_NAME,
                        namespace=ACTOR_NAMESPACE,
                        get_if_exists=True,
                        lifetime="detached",  # else it would end with the replica that made it
                        num_cpus=0,
                        max_restarts=-1,
                        max_task_retries=1,
                    )
                    .remote()
                )
            return self._actor
