from __future__ import annotations

import bz2
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest

from truthgpt_serve.training.data import BadRows, read_rows
from truthgpt_serve.training.errors import TrainingError


def read(dataset: Path, on_bad_row: str = "stop", **columns: Any) -> tuple[list[Any], BadRows]:
    bad_rows = BadRows(on_bad_row)
    return list(read_rows(str(dataset), bad_rows, **columns)), bad_rows


def write(file: Path, content: bytes) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file


def test_text_is_a_row_a_line_and_blank_lines_are_none(tmp_path: Path) -> None:
    file = write(tmp_path / "a.txt", "\ufeffone\n\n  two \n".encode())
    rows, _ = read(file, text_field="story")
    assert [(row.values, row.place) for row in rows] == [
        ({"story": "one"}, f"{file}:1"),
        ({"story": "two"}, f"{file}:3"),
    ]


def test_a_folder_is_read_by_name(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "deep/c.jsonl"):
        write(tmp_path / name, json.dumps({"text": name}).encode())
    rows, _ = read(tmp_path)
    assert [row.values["text"] for row in rows] == ["a.jsonl", "b.jsonl", "deep/c.jsonl"]


def test_parquet_rows_have_their_number(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    parquet.write_table(arrow.table({"text": [f"t{n}" for n in range(2500)]}), file)
    rows, _ = read(file)
    assert rows[2400].values == {"text": "t2400"}
    assert rows[2400].place == f"{file}: row 2401"


BAD = {
    "not-json": (b'{"text": "a"}\n{"text": \n', ":2: is not JSON"),
    "not-an-object": (b'{"text": "a"}\n\n[1]\n', ":3: must be a JSON object, found a list"),
    "not-utf8": (b'{"text": "a"}\n{"text": "\xff"}\n', ":2: is not UTF-8 text"),
    "cut-off": (b'{"text": "a"}\n{"text": "b"', ":2: is not JSON"),
    "nested": (b'{"text": "a"}\n' + b"[" * 100_000 + b"\n", ":2: is nested too deeply"),
}


@pytest.mark.parametrize("name", list(BAD))
def test_a_bad_line_stops_with_its_place_or_is_skipped(name: str, tmp_path: Path) -> None:
    content, problem = BAD[name]
    file = write(tmp_path / "a.jsonl", content)
    with pytest.raises(TrainingError) as caught:
        read(file)
    assert str(caught.value).startswith(f"{file}{problem}")
    assert "data.on_bad_row: skip" in str(caught.value)
    rows, bad_rows = read(file, "skip")
    assert [row.values for row in rows] == [{"text": "a"}]
    assert (bad_rows.count, bad_rows.shown[0].startswith(f"{file}{problem}")) == (1, True)


def test_a_bad_line_of_text_has_its_place(tmp_path: Path) -> None:
    file = write(tmp_path / "a.txt", b"one\n\xc3\x28\n")
    with pytest.raises(TrainingError, match=rf"{file}:2: is not UTF-8 text"):
        read(file)


def test_the_byte_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    file = write(tmp_path / "a.txt", "one\nMüller".encode("latin-1"))
    with pytest.raises(TrainingError, match=r":2: .*: byte 0xfc at position 2 \("):
        read(file)


NO_TEXT = {
    "UTF-16": ('{"text": "a"}\n'.encode("utf-16"), r"is UTF-16 text \(save it as UTF-8\)"),
    "gzip": (
        gzip.compress(b'{"text": "a"}\n'),
        r"is compressed by gzip \(let its name end with \.gz\)",
    ),
    "a table": (b"PK\x03\x04" + bytes(40), r"is a ZIP archive \(unpack it\)"),
    "bzip2": (bz2.compress(b"a"), r"is compressed by bzip2 \(unpack it\)"),
    "Parquet": (
        b"PAR1\x15\x04\x15" + bytes(40),
        r"is Parquet \(let its name end with \.parquet\)",
    ),
}


@pytest.mark.parametrize("on_bad_row", ["stop", "skip"])
@pytest.mark.parametrize("suffix", ["txt", "jsonl", "json", "csv", "tsv"])
@pytest.mark.parametrize("name", list(NO_TEXT))
def test_a_file_that_is_no_text_in_utf8_is_named_once(
    name: str, suffix: str, on_bad_row: str, tmp_path: Path
) -> None:
    content, message = NO_TEXT[name]
    file = write(tmp_path / f"a.{suffix}", content)
    with pytest.raises(TrainingError, match=rf"a\.{suffix}: {message}$"):
        read(file, on_bad_row)
    file = write(tmp_path / f"a.{suffix}.gz", gzip.compress(content))
    with pytest.raises(TrainingError, match=rf"a\.{suffix}\.gz: {message}$"):
        read(file, on_bad_row)


def test_text_that_begins_like_a_format_is_text(tmp_path: Path) -> None:
    for text in ("PAR1 is a word", "BZhang said", "PK"):
        rows, _ = read(write(tmp_path / "a.txt", text.encode()))
        assert [row.values["text"] for row in rows] == [text]


def test_a_damaged_parquet_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    parquet.write_table(arrow.table({"text": ["a"] * 1000}), file)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(TrainingError, match=rf"{file}: is not readable Parquet"):
        read(file)


def test_skipped_rows_are_counted_and_the_first_are_shown(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", b"x\n" * 100 + b'{"text": "a"}\n')
    rows, bad_rows = read(file, "skip")
    assert (len(rows), bad_rows.count, len(bad_rows.shown)) == (1, 100, 5)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.jsonl", None, "does not exist"),
        ("a.xlsx", b"a,b", r"cannot read \.xlsx files"),
        ("a.parquet.gz", b"a,b", r"cannot read \.gz files"),
        ("folder/a.xlsx", b"a,b", "holds no data"),
    ],
)
def test_data_that_cannot_be_read_is_refused(
    name: str, content: bytes | None, message: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    if content is not None:
        write(path, content)
    with pytest.raises(TrainingError, match=message):
        read(path.parent if "folder" in name else path)


def test_a_folder_of_two_kinds_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", b"{}")
    write(tmp_path / "a.txt", b"a")
    with pytest.raises(TrainingError, match="several kinds"):
        read(tmp_path)


def test_a_hub_name_out_of_reach_is_told_as_such() -> None:
    with pytest.raises(TrainingError, match=r"data\.dataset 'no-such/data-set' cannot be read"):
        list(read_rows("no-such/data-set", BadRows("stop")))


def test_a_folder_that_is_missing_is_not_asked_of_the_hub() -> None:
    with pytest.raises(TrainingError, match=r"data\.dataset 'missing/' does not exist"):
        list(read_rows("missing/", BadRows("stop")))
