"""Compressed files, whole and damaged."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pyarrow
import pytest

from truthgpt_serve.training.data import BadRows, read_rows
from truthgpt_serve.training.errors import TrainingError

ROWS = [{"text": f"{random.Random(n).random()}" * 20} for n in range(500)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def pack(content: bytes, suffix: str) -> bytes:
    if suffix == ".gz":
        return gzip.compress(content)
    return bytes(pyarrow.compress(content, codec="zstd", asbytes=True))


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".GZ"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.txt", "a.ndjson"])
def test_a_compressed_file_has_the_rows_of_the_plain_one(
    name: str, suffix: str, tmp_path: Path
) -> None:
    content = {
        "json": json.dumps(ROWS).encode(),
        "txt": "\n".join(row["text"] for row in ROWS).encode(),
        "csv": "\n".join(["text", *(row["text"] for row in ROWS)]).encode(),
    }
    content["tsv"] = content["csv"]
    plain = content.get(name.partition(".")[2], LINES)
    file = tmp_path / f"{name}{suffix}"
    file.write_bytes(pack(plain, suffix.lower()))
    assert [row.values for row in read_rows(str(file), BadRows("stop"))] == ROWS


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_damage_is_a_bad_row_and_what_is_before_it_is_read(
    name: str, suffix: str, tmp_path: Path
) -> None:
    plain = LINES if name == "a.jsonl" else json.dumps(ROWS).encode()
    packed = pack(plain * 40 if name == "a.jsonl" else plain, suffix)
    file = tmp_path / f"{name}{suffix}"
    file.write_bytes(packed[: len(packed) * 3 // 4])
    with pytest.raises(TrainingError, match=r"is lost with all behind it: compressed data"):
        list(read_rows(str(file), BadRows("stop")))
    bad_rows = BadRows("skip")
    rows = list(read_rows(str(file), bad_rows))
    assert bad_rows.count == 1
    assert [row.values for row in rows] == (ROWS * 40)[: len(rows)]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_what_is_not_compressed_is_named(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"a.jsonl{suffix}"
    file.write_bytes(LINES)
    with pytest.raises(TrainingError, match=r":1: is lost with all behind it: compressed data"):
        list(read_rows(str(file), BadRows("stop")))


def test_a_bomb_is_read_piece_by_piece(tmp_path: Path) -> None:
    """A gigabyte of zeros in a megabyte is one line that is too long, and is not kept."""
    file = tmp_path / "a.jsonl.gz"
    with gzip.open(file, "wb", compresslevel=9) as stream:
        for _ in range(130):
            stream.write(bytes(1 << 20))
    bad_rows = BadRows("skip")
    assert list(read_rows(str(file), bad_rows)) == []
    assert "is a line of more than 64 MiB" in bad_rows.shown[0]
