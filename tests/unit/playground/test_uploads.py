"""The folder of uploads: what is old goes, and makes room."""

from __future__ import annotations

import asyncio
import importlib.util
from contextlib import suppress
from pathlib import Path

import pytest

if importlib.util.find_spec("gradio") is None:
    pytest.skip("the extra `ui` is not installed", allow_module_level=True)

from truthgpt_serve.errors import OverloadedError
from truthgpt_serve.playground.uploads import MAX_FILES, MAX_LARGEST, Uploads


def test_what_is_old_is_removed_whoever_made_it(tmp_path: Path) -> None:
    removed: set[str] = set()
    uploads = Uploads(tmp_path, 1024, removed.update)
    paths = [tmp_path / "tmpabc", tmp_path / "hash" / "a.wav"]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"0")
    uploads.clean(60)
    assert all(path.exists() for path in paths)
    uploads.clean(0)
    assert list(tmp_path.iterdir()) == []
    assert removed == {str(path) for path in paths}


def test_the_folder_is_looked_through_by_itself(tmp_path: Path) -> None:
    (tmp_path / "tmpabc").write_bytes(b"0")

    async def watch() -> None:
        uploads = Uploads(tmp_path, 1024, keep_s=0)
        watching = asyncio.ensure_future(uploads.watch(0.01))
        async with asyncio.timeout(20):
            while any(tmp_path.iterdir()):
                await asyncio.sleep(0.01)
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching

    asyncio.run(watch())


@pytest.mark.parametrize(("number", "size"), [(MAX_LARGEST + 1, 1024), (MAX_FILES + 1, 1)])
def test_a_full_folder_makes_room_of_what_is_not_new(
    tmp_path: Path, number: int, size: int
) -> None:
    for at in range(number):
        (tmp_path / f"{at}").write_bytes(b"0" * size)
    with pytest.raises(OverloadedError):
        Uploads(tmp_path, 1024).clean(60)
    uploads = Uploads(tmp_path, 1024, full_keep_s=0)
    uploads.clean(60, check=False)
    uploads.clean(60)
    assert list(tmp_path.iterdir()) == []
