"""Folders of images and their captions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from truthgpt_serve.training.data import BadRows, read_rows


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
