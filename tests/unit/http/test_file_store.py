"""Stored files: limits, expiry and what fetching them answers."""

from __future__ import annotations

import asyncio
import time

import pytest

from truthgpt_serve.errors import ExpiredFileError, MissingFileError, ServerError
from truthgpt_serve.http.file_store import (
    FileShelf,
    LocalFileStore,
    StoredFile,
    create_file_id,
    fetch_file,
)


def file_of(num_bytes: int, expires_at_s: float = 100.0) -> StoredFile:
    return StoredFile(bytes(num_bytes), "image/png", expires_at_s)


def test_the_oldest_files_of_a_group_make_room() -> None:
    shelf = FileShelf(clock=lambda: 0.0)
    for name in "abc":
        shelf.put(name, file_of(40), group="one", max_bytes=100)
    shelf.put("x", file_of(90), group="two", max_bytes=100)
    assert [shelf.get(name) is not None for name in "abcx"] == [False, True, True, True]
    assert shelf.num_bytes == 170
    shelf.put("d", file_of(100), group="one", max_bytes=100)
    assert [shelf.get(name) is not None for name in "abcdx"] == [False] * 3 + [True] * 2
    assert shelf.num_bytes == 190


def test_a_file_that_was_fetched_is_not_newer_for_it() -> None:
    shelf = FileShelf(clock=lambda: 0.0)
    for name in "ab":
        shelf.put(name, file_of(40), group="one", max_bytes=100)
    assert shelf.get("a") is not None
    shelf.put("c", file_of(40), group="one", max_bytes=100)
    assert [shelf.get(name) is not None for name in "abc"] == [False, True, True]


@pytest.mark.parametrize(("max_bytes", "left"), [(200, "abc"), (90, "bc"), (50, "c")])
def test_the_room_of_a_group_may_change(max_bytes: int, left: str) -> None:
    shelf = FileShelf(clock=lambda: 0.0)
    for name in "ab":
        shelf.put(name, file_of(40), group="one", max_bytes=100)
    shelf.put("c", file_of(40), group="one", max_bytes=max_bytes)
    assert "".join(name for name in "abc" if shelf.get(name)) == left


def test_the_same_id_twice_is_one_file() -> None:
    shelf = FileShelf(clock=lambda: 0.0)
    for num_bytes in (10, 20):
        shelf.put("a", file_of(num_bytes), group="one", max_bytes=100)
    assert shelf.num_bytes == 20


def test_files_expire_in_any_order() -> None:
    now = [0.0]
    shelf = FileShelf(clock=lambda: now[0])
    for name, expires_at_s in (("a", 30.0), ("b", 10.0), ("c", 20.0)):
        shelf.put(name, file_of(1, expires_at_s), group=name, max_bytes=10)
    shelf.put("b", file_of(1, 25.0), group="b", max_bytes=10)  # its first expiry is void
    found = []
    for now[0] in (9.9, 10.0, 20.0, 25.0, 30.0):
        found.append("".join(name for name in "abc" if shelf.get(name)))
    assert found == ["abc", "abc", "ab", "a", ""]
    assert shelf.num_bytes == 0


def test_expired_files_are_freed_without_requests() -> None:
    async def run() -> tuple[int, int]:
        store = LocalFileStore()
        await store.put(bytes(9), "image/png", group="m", expiry_s=0.1, max_bytes=100)
        before = store.num_bytes
        await asyncio.sleep(0.5)
        return before, store.num_bytes

    assert asyncio.run(run()) == (9, 0)


def test_what_is_not_there_says_why() -> None:
    async def run() -> None:
        store = LocalFileStore()
        file_id = await store.put(b"x", "image/webp", group="m", expiry_s=9, max_bytes=10)
        assert (await fetch_file(store, file_id)).data == b"x"
        with pytest.raises(ExpiredFileError, match="has expired"):
            await fetch_file(store, create_file_id("image/png", time.time() - 1))
        with pytest.raises(MissingFileError, match="made room"):
            await fetch_file(store, create_file_id("image/png", time.time() + 99))
        for wrong in ("", "x.png", file_id + "x", "../" + file_id, file_id.upper(), "é" * 300):
            with pytest.raises(MissingFileError, match="there is no file"):
                await fetch_file(store, wrong)
        with pytest.raises(ServerError, match="max_stored_bytes"):
            await store.put(bytes(11), "image/png", group="m", expiry_s=9, max_bytes=10)

    asyncio.run(run())


def test_ids_cannot_be_guessed() -> None:
    ids = {create_file_id("image/png", 5).partition("-")[0] for _ in range(1000)}
    assert len(ids) == 1000
    assert all(len(file_id) == 48 for file_id in ids)
