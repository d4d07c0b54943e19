"""Where conversions write: never half, never over another."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from truthgpt_serve.takeaway.errors import TakeawayError
from truthgpt_serve.takeaway.output import check_output, check_room, writing


def write_half(out: Path) -> None:
    with writing(out) as folder:
        (folder / "file").write_text("half")
        raise FloatingPointError


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with writing(out) as folder:
        (folder / "file").write_text("new")
        assert not out.exists()
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    with pytest.raises(FloatingPointError):
        write_half(out)
    assert (out / "file").read_text() == "new"
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    mask = os.umask(0o027)
    try:
        with writing(out) as folder:
            pass
    finally:
        os.umask(mask)
    assert out.stat().st_mode & 0o777 == 0o750
    assert list(out.iterdir()) == []


def test_what_is_there_stays_without_force(tmp_path: Path) -> None:
    source, there = tmp_path / "run" / "model", tmp_path / "there"
    source.mkdir(parents=True)
    there.mkdir()
    assert check_output(tmp_path / "new", force=False, source=source) == tmp_path / "new"
    assert check_output(there, force=True, source=source) == there
    with pytest.raises(TakeawayError, match=r"exists already .*--force"):
        check_output(there, force=False, source=source)
    with pytest.raises(TakeawayError, match="holds what is read"):
        check_output(tmp_path / "run", force=True, source=source)
    (tmp_path / "link").symlink_to(there)
    with pytest.raises(TakeawayError, match="is no folder"):
        check_output(tmp_path / "link", force=True, source=source)


def test_a_full_disk_is_found_before_anything_is_written(tmp_path: Path) -> None:
    place = tmp_path / "not" / "there"
    asked: list[Path] = []

    def free(folder: Path) -> int:
        asked.append(folder)
        return 1 << 30

    check_room(place, 1 << 20, free)
    assert asked == [tmp_path]
    with pytest.raises(TakeawayError, match=r"1,\d+,\d+,\d+ bytes are needed, 1,073,741,824 are"):
        check_room(place, 1 << 30, free)
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(TakeawayError, match="cannot be written"), writing(blocked / "out"):
        pass
