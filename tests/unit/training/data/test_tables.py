"""CSV and TSV: cells, delimiters, headers, and rows that are none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from truthgpt_serve.training.data import BadRows, read_rows, tables
from truthgpt_serve.training.errors import TrainingError


def read(file: Path, content: bytes, on_bad_row: str = "stop") -> tuple[list[Any], BadRows]:
    file.write_bytes(content)
    bad_rows = BadRows(on_bad_row)
    return list(read_rows(str(file), bad_rows)), bad_rows


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", b"prompt,completion\na,b\n"),
        ("a.csv", b"\xef\xbb\xbfprompt,completion\r\na,b\r\n"),
        ("a.csv", b"\n prompt ;completion\na;b"),
        ("a.csv", b"prompt\tcompletion\na\tb\n\n\n"),
        ("a.tsv", b"prompt\tcompletion\na\tb\n"),
        ("A.CSV", b'"prompt","completion"\n"a","b"\n'),
    ],
)
def test_the_header_names_the_columns(name: str, content: bytes, tmp_path: Path) -> None:
    rows, _ = read(tmp_path / name, content)
    assert [row.values for row in rows] == [{"prompt": "a", "completion": "b"}]


def test_a_quoted_cell_may_have_lines_and_a_place_is_where_it_begins(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    rows, _ = read(file, b'text,more\n"one\ntwo, ""three""",\nfour,5\n')
    assert [(row.values, row.place) for row in rows] == [
        ({"text": 'one\ntwo, "three"', "more": None}, f"{file}:2"),
        ({"text": "four", "more": "5"}, f"{file}:4"),
    ]


def test_a_cell_may_be_long(tmp_path: Path) -> None:
    rows, _ = read(tmp_path / "a.csv", b"text\n" + b"x" * 1_000_000 + b"\n")
    assert len(rows[0].values["text"]) == 1_000_000


BAD = {
    "few cells": (b"a\n", ":3: has 1 cells, the header has 2"),
    "many cells": (b"a,b,c\n", ":3: has 3 cells, the header has 2"),
    "not UTF-8": (b"a,\xff\n", ":3: is not UTF-8 text"),
    "a stray quote": (b'"a"b,c\n', ":3: is not CSV: "),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_stops_with_its_place_or_is_skipped(name: str, tmp_path: Path) -> None:
    line, problem = BAD[name]
    file = tmp_path / "a.csv"
    content = b"text,more\nx,y\n" + line + b"z,w\n"
    with pytest.raises(TrainingError) as caught:
        read(file, content)
    assert str(caught.value).startswith(f"{file}{problem}")
    rows, bad_rows = read(file, content, "skip")
    assert [row.values["text"] for row in rows] == ["x", "z"]
    assert bad_rows.count == 1


def test_a_quote_without_an_end_is_a_bad_row(tmp_path: Path) -> None:
    rows, bad_rows = read(tmp_path / "a.csv", b'text,more\nx,y\n"a,b\nc,d\n', "skip")
    assert ([row.values["text"] for row in rows], bad_rows.count) == (["x"], 2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"text,\na,b\n", ":1: column 2 has no name"),
        (b"text,text\na,b\n", ":1: two columns are named 'text'"),
        (b"te\xffxt\na\n", ":1: the header is not UTF-8 text"),
        (b'"te"xt\na\n', ":1: the header is not CSV"),
    ],
)
def test_a_header_that_names_no_columns_is_refused(
    content: bytes, message: str, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError) as caught:
        read(tmp_path / "a.csv", content, "skip")
    assert message in str(caught.value)


def test_a_quote_is_text_in_tsv(tmp_path: Path) -> None:
    lines = ["text\tlabel", '"Tis the season\t1', "plain\t2", 'It is 5"\t3']
    rows, bad_rows = read(tmp_path / "a.tsv", "\n".join(lines).encode())
    assert [row.values["label"] for row in rows] == ["1", "2", "3"]
    assert (rows[0].values["text"], bad_rows.count) == ('"Tis the season', 0)


def test_the_lines_behind_an_open_quote_are_counted_as_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.csv"
    content = b'text,label\n"open,1\n' + b"row,2\n" * 1000
    rows, bad_rows = read(file, content, "skip")
    assert (rows, bad_rows.count) == ([], 1001)
    assert "lines 2 to 1002 are lost" in bad_rows.shown[0]
    monkeypatch.setattr(tables, "MAX_LINES", 100)
    with pytest.raises(TrainingError, match="a quoted cell goes over too many lines"):
        read(file, content)
    rows, bad_rows = read(file, b'text\n"a\n' + b"b\n" * 150, "skip")
    assert (len(rows), bad_rows.count) == (50, 101)  # what follows is read again
    rows, _ = read(file, b'text\n"' + b"a\n" * 90 + b'"\n"' + b"b\n" * 90 + b'"\n')
    assert [row.values["text"] for row in rows] == ["a\n" * 90, "b\n" * 90]


def test_a_line_of_many_values_is_no_header(tmp_path: Path) -> None:
    line = ",".join(str(number) for number in range(20_000)).encode()
    with pytest.raises(TrainingError, match="has over 10,000 columns"):
        read(tmp_path / "a.csv", line)
