"""Lists, patterns, and the same rows in twelve usual files."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest

from deployments.vllm.tiny_model import make_tiny_llama
from tests.support.training_runs import job_of, run, sections_of
from truthgpt_serve.config import load_model_config
from truthgpt_serve.training.data import BadRows, Inventory, read_rows
from truthgpt_serve.training.data.fingerprint import data_fingerprint
from truthgpt_serve.training.errors import TrainingError

ROWS = [{"prompt": f"Who finds {n}?", "completion": f" Ada, twice: {n}."} for n in range(6)]


def table(delimiter: str) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(ROWS[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(ROWS)
    return text.getvalue().encode()


def parquet_bytes() -> bytes:
    sink = arrow.BufferOutputStream()
    parquet.write_table(arrow.Table.from_pylist(ROWS), sink)
    return bytes(sink.getvalue().to_pybytes())


def zstd(content: bytes) -> bytes:
    return bytes(arrow.compress(content, codec="zstd", asbytes=True))


LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
LIST = json.dumps(ROWS, indent=1).encode()
FILES: dict[str, Callable[[], bytes]] = {
    "a.jsonl": lambda: LINES,
    "a.ndjson": lambda: LINES,
    "lines.json": lambda: LINES,
    "list.json": lambda: LIST,
    "a.csv": lambda: table(","),
    "semicolons.csv": lambda: table(";"),
    "a.tsv": lambda: table("\t"),
    "a.parquet": parquet_bytes,
    "a.jsonl.gz": lambda: gzip.compress(LINES),
    "a.jsonl.zst": lambda: zstd(LINES),
    "list.json.gz": lambda: gzip.compress(LIST),
    "a.csv.zst": lambda: zstd(table(",")),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("model") / "llama")


@pytest.fixture(scope="module")
def losses(model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    return train(model, tmp_path_factory.mktemp("plain"), "a.jsonl")


def train(model: Path, folder: Path, name: str) -> list[float]:
    file = folder / name
    file.write_bytes(FILES[name]())
    return run(job_of(folder / "run", sections_of(model, file, training={"max_steps": 2})))


@pytest.mark.long("trains on each kind of file")
@pytest.mark.parametrize("name", [name for name in FILES if name != "a.jsonl"])
def test_the_losses_are_the_same_in_every_file(
    name: str, model: Path, losses: list[float], tmp_path: Path
) -> None:
    assert train(model, tmp_path, name) == losses


def put(folder: Path, *names: str) -> None:
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"text": name}) + "\n")


def texts(dataset: Any, **more: Any) -> list[str]:
    return [row.values["text"] for row in read_rows(dataset, BadRows("stop"), **more)]


def test_a_list_is_read_in_its_order(tmp_path: Path) -> None:
    put(tmp_path, "b.jsonl", "a.jsonl", "deep/c.jsonl", "deep/test.jsonl")
    names = [str(tmp_path / name) for name in ("b.jsonl", "deep", "a.jsonl")]
    inventory = Inventory()
    assert texts(names, inventory=inventory) == ["b.jsonl", "deep/c.jsonl", "a.jsonl"]
    lines = inventory.lines()
    assert lines[0] == "reads    b.jsonl, c.jsonl, a.jsonl"
    assert "test.jsonl (split test)" in lines[1]


def test_a_pattern_is_its_files_by_name(tmp_path: Path) -> None:
    put(tmp_path, "part-2.jsonl", "part-1.jsonl", "other.jsonl", "deep/er/part-3.jsonl")
    assert texts(f"{tmp_path}/part-*.jsonl") == ["part-1.jsonl", "part-2.jsonl"]
    everywhere = texts(f"{tmp_path}/**/part-?.jsonl")
    assert everywhere == ["deep/er/part-3.jsonl", "part-1.jsonl", "part-2.jsonl"]
    with pytest.raises(TrainingError, match=r"data\.eval_dataset '.*/none-\*' matches no file"):
        texts(f"{tmp_path}/none-*", split="validation")


def test_a_file_whose_name_looks_like_a_pattern_is_itself(tmp_path: Path) -> None:
    put(tmp_path, "a[1].jsonl", "a1.jsonl")
    assert texts(str(tmp_path / "a[1].jsonl")) == ["a[1].jsonl"]


def test_a_pattern_and_a_list_are_found_beside_the_yaml_file(tmp_path: Path) -> None:
    put(tmp_path, "data/part-1.jsonl")
    file = tmp_path / "model.yaml"
    for dataset in ("data/part-*.jsonl", ["data/part-1.jsonl", "org/name"]):
        file.write_text(json.dumps({"data": {"dataset": dataset}}))
        found = load_model_config(file).data.dataset
        one = found[0] if isinstance(found, list) else found
        assert str(one).startswith(str(tmp_path / "data/part-"))


def test_the_fingerprint_knows_all_files_of_a_list_and_their_order(tmp_path: Path) -> None:
    put(tmp_path, "a.jsonl", "b.jsonl")
    names = [str(tmp_path / name) for name in ("a.jsonl", "b.jsonl")]
    found = {
        data_fingerprint(names),
        data_fingerprint(names[::-1]),
        data_fingerprint(names[:1]),
        data_fingerprint(f"{tmp_path}/*.jsonl", "x"),
    }
    assert len(found) == 4
    assert data_fingerprint(names) == data_fingerprint(f"{tmp_path}/*.jsonl")


def test_a_pattern_reads_nothing_twice(tmp_path: Path) -> None:
    put(tmp_path, "x/x/a.jsonl", "b.jsonl")
    assert texts(f"{tmp_path}/**/x/**/*.jsonl") == ["x/x/a.jsonl"]
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress((tmp_path / "b.jsonl").read_bytes()))
    (tmp_path / "c.jsonl").symlink_to(tmp_path / "b.jsonl")
    inventory = Inventory()
    assert texts(f"{tmp_path}/*.jsonl*", inventory=inventory) == ["b.jsonl"]
    assert len(inventory.describe_left_out()) == 2
    (tmp_path / "deep").mkdir()
    for name in ("b.jsonl.gz", "b.jsonl.zst"):
        (tmp_path / "deep" / name).write_bytes(
            zstd(LINES) if name.endswith("zst") else gzip.compress(LINES)
        )
    assert len([*read_rows(str(tmp_path / "deep"), BadRows("stop"))]) == len(ROWS)


def test_the_fingerprint_names_the_key_of_missing_data(tmp_path: Path) -> None:
    put(tmp_path, "a.jsonl")
    with pytest.raises(TrainingError, match=r"data\.eval_dataset '/no/such/"):
        data_fingerprint(str(tmp_path), "/no/such/x.jsonl")
