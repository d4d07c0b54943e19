"""The fingerprint of data."""

from __future__ import annotations

from pathlib import Path

from truthgpt_serve.training.data import data_fingerprint


def write(file: Path, content: bytes) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file


def test_the_fingerprint_follows_the_content_and_not_the_place(tmp_path: Path) -> None:
    one = write(tmp_path / "one" / "a.jsonl", b"1")
    two = write(tmp_path / "two" / "a.jsonl", b"1")
    assert data_fingerprint(str(one)) == data_fingerprint(str(two))
    assert data_fingerprint(str(one)) != data_fingerprint(str(one), subset="x")
    before = data_fingerprint(str(one.parent))
    write(two, b"2")
    assert data_fingerprint(str(one)) != data_fingerprint(str(two))
    write(one.parent / "b.jsonl", b"")
    assert data_fingerprint(str(one.parent)) != before
