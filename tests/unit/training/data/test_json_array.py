"""Lists of objects in a `.json` file, read piece by piece."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from truthgpt_serve.training.data import BadRows, json_array, read_rows
from truthgpt_serve.training.errors import TrainingError


def read(file: Path, content: bytes, on_bad_row: str = "stop") -> tuple[list[Any], BadRows]:
    file.write_bytes(content)
    bad_rows = BadRows(on_bad_row)
    return list(read_rows(str(file), bad_rows)), bad_rows


ROWS = [{"text": "é" * n, "more": {"a": [n, "]", {}]}} for n in range(40)]


@pytest.mark.parametrize("chunk_bytes", [1, 7, 1 << 20])
@pytest.mark.parametrize("indent", [None, 2])
def test_a_list_is_read_however_it_is_cut(
    chunk_bytes: int, indent: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_array, "_CHUNK_BYTES", chunk_bytes)
    for ascii_only in (True, False):
        text = json.dumps(ROWS, indent=indent, ensure_ascii=ascii_only)
        rows, _ = read(tmp_path / "a.json", ("\ufeff \n" + text + "\n").encode())
        assert [row.values for row in rows] == ROWS
    assert rows[3].place == f"{tmp_path / 'a.json'}: row 4"


def test_an_object_on_each_line_is_read_too(tmp_path: Path) -> None:
    text = "\n".join(json.dumps(row) for row in ROWS)
    rows, _ = read(tmp_path / "a.json", text.encode())
    assert [row.values for row in rows] == ROWS


@pytest.mark.parametrize("content", [b"", b"  \n", b"[]", b" [ ] "])
def test_nothing_is_no_row(content: bytes, tmp_path: Path) -> None:
    assert read(tmp_path / "a.json", content)[0] == []


def test_an_element_that_is_no_object_is_a_bad_row(tmp_path: Path) -> None:
    content = b'[{"text": "a"}, 12, null, {"text": "b"}]'
    with pytest.raises(TrainingError, match=r"row 2: must be a JSON object, found a number"):
        read(tmp_path / "a.json", content)
    rows, bad_rows = read(tmp_path / "a.json", content, "skip")
    assert ([row.values["text"] for row in rows], bad_rows.count) == (["a", "b"], 2)


def test_an_element_that_is_not_utf8_is_a_bad_row_and_no_other(tmp_path: Path) -> None:
    content = b'[{"text": "a"}, {"text": "\xff"}, {"text": "\\udcff"}, {"text": "\xc3\xa9"}]'
    rows, bad_rows = read(tmp_path / "a.json", content, "skip")
    assert [row.values["text"] for row in rows] == ["a", "\udcff", "é"]
    assert (bad_rows.count, "row 2: is not UTF-8" in bad_rows.shown[0]) == (1, True)


@pytest.mark.parametrize(
    ("rest", "problem"),
    [
        (b', {"text": }]', "row 2: is not JSON"),
        (b', {"text": "b"', "row 2: is not JSON"),
        (b' {"text": "b"}]', "row 2: does not follow a comma"),
        (b", " + b"[" * 100_000, "row 2: is nested too deeply"),
        (b',{"text": oops}' + b" " * 500, "row 2: is not JSON"),
        (b',{"text": ' + b"1" * 5000 + b"}]", "row 2: is not JSON"),
        (b'] [{"text": "b"}]', "row 2: is behind the end of the list"),
        (b',{"text": "b"},', "row 3: is not JSON"),
    ],
)
def test_what_is_behind_damage_is_lost_and_said_to_be(
    rest: bytes, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_array, "_CHUNK_BYTES", 8)
    content = b'[{"text": "a"}' + rest
    with pytest.raises(TrainingError, match=problem):
        read(tmp_path / "a.json", content)
    rows, bad_rows = read(tmp_path / "a.json", content, "skip")
    assert rows[0].values == {"text": "a"}
    assert bad_rows.count == 1
    assert "all behind it is lost" in bad_rows.shown[0]


def test_one_object_alone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="holds a single object, not a list of rows"):
        read(tmp_path / "a.json", json.dumps({"data": ROWS}, indent=1).encode(), "skip")


def test_an_element_without_end_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_array, "MAX_LINE_BYTES", 1 << 20)
    monkeypatch.setattr(json_array, "_CHUNK_BYTES", 1 << 12)
    with pytest.raises(TrainingError, match=r"row 1: is longer than 1 MiB"):
        read(tmp_path / "a.json", b'["' + b"x" * (8 << 20))
