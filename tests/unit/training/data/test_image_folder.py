"""Folders of images and their captions."""

from __future__ import annotations

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


def test_images_have_their_captions_from_metadata(tmp_path: Path) -> None:
    write(tmp_path / "a.png", b"")
    lines = [
        {"file_name": "a.png", "text": "a cat"},
        {"file_name": "b.png", "text": "a dog"},
        {"file_name": "a.png"},
    ]
    metadata = "".join(json.dumps(line) + "\n" for line in lines).encode()
    file = write(tmp_path / "metadata.jsonl", metadata)
    rows, bad_rows = read(tmp_path, "skip")
    assert [(row.values["image"], row.values["text"]) for row in rows] == [
        (str(tmp_path / "a.png"), "a cat")
    ]
    assert bad_rows.shown[0].startswith(f"{file}:2: there is no image")
    assert bad_rows.shown[1].startswith(f"{file}:3: has no 'text' column")


def test_images_have_their_captions_from_the_file_beside(tmp_path: Path) -> None:
    write(tmp_path / "a.png", b"")
    write(tmp_path / "b.jpg", b"")
    write(tmp_path / "a.txt", b"a cat\n")
    rows, bad_rows = read(tmp_path, "skip", image_field="picture", caption_field="words")
    assert [row.values for row in rows] == [{"picture": str(tmp_path / "a.png"), "words": "a cat"}]
    assert bad_rows.shown == [f"{tmp_path / 'b.jpg'}: has no caption: there is no b.txt beside it"]


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.parquet"])
def test_captions_may_be_a_table(name: str, tmp_path: Path) -> None:
    for image in ("a.png", "b.png"):
        (tmp_path / image).write_bytes(b"an image")
    rows = [{"file_name": "a.png", "text": "One, two"}, {"file_name": "b.png", "text": "Three"}]
    if name == "metadata.csv":
        (tmp_path / name).write_text('file_name,text\na.png,"One, two"\nb.png,Three\n')
    else:
        parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / name)
    found = list(read_rows(str(tmp_path), BadRows("stop"), content="images"))
    assert [(Path(row.values["image"]).name, row.values["text"]) for row in found] == [
        ("a.png", "One, two"),
        ("b.png", "Three"),
    ]
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "x"}\n')
    with pytest.raises(TrainingError, match=r"holds both metadata\.\w+ and metadata\.\w+ \(keep"):
        list(read_rows(str(tmp_path), BadRows("stop"), content="images"))
