"""Folders of damaged data, drawn by seed: what is read of them, or one clear error.

`TRUTHGPT_FUZZ=2000 pytest tests/unit/training/test_fuzz.py` draws more of them.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
from transformers import AutoTokenizer

from deployments.vllm.tiny_model import make_tiny_llama
from tests.support.training_runs import job_of, sections_of
from truthgpt_serve.config import load_model_config
from truthgpt_serve.training.data import data_fingerprint
from truthgpt_serve.training.errors import TrainingError
from truthgpt_serve.training.images.data.image_files import CENTER
from truthgpt_serve.training.images.data.load import load_images
from truthgpt_serve.training.text import prepare

NUM_SEEDS = int(os.environ.get("TRUTHGPT_FUZZ", "150"))
METHODS: dict[str, dict[str, Any]] = {
    "sft": {},
    "dpo": {},
    "kto": {},
    "orpo": {},
    "reward": {},
    "grpo": {"training": {"reward": "tests.support.training_rewards:counts_the"}},
    "ppo": {"training": {"reward": "tests.support.training_rewards:counts_the"}},
    "embedding": {"task": "embedding", "family": "hf-transformers"},
    "classification": {"task": "custom", "family": "hf-transformers"},
}
"""By method: what its configuration needs. Half of the folders are read for `sft`."""
FORMATS = ("auto", "auto", "auto", "messages", "alpaca", "preference", "prompt-completion", "pairs")
NAMES = ("a.jsonl", "b.jsonl", "train.jsonl", "test.jsonl", "c.parquet", "d.txt", "B.JSONL",
         "e.json", "x.jsonl.gz", "y.jsonl.zst", "t.csv", "t.tsv", "t.csv.gz", "u.json.zst",
         ".h.jsonl", "deep/f.jsonl", "README.txt", "plot.png", "p.JPG",
         "metadata.jsonl", "d copy.txt", "train/g.parquet", "val/i.jsonl", "\udcff.jsonl",
         "n\nl.jsonl")  # fmt: skip
ATOMS: tuple[Any, ...] = (
    None, True, 0, -1, 1.5, float("nan"), 10**400, "", " ", "text", "\ud83d", "a\0b", "\ufeffx",
    [], {}, [[]], "\n", "x" * 3000, {"role": "user", "content": "Hi"}, "user", "assistant", "tool",
)  # fmt: skip
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".zst": lambda content: bytes(arrow.compress(content, codec="zstd", asbytes=True)),
}
KEYS = ("text", "prompt", "chosen", "rejected", "completion", "tools", "file_name", "image",
        "weight", "role", "content", "tool_calls", "function", "name", "arguments", "\ud800", "",
        "type")  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("model") / "llama")


def draw_value(draw: random.Random, depth: int = 0) -> Any:
    kind = draw.random()
    if depth > 4 or kind < 0.5:
        return draw.choice(ATOMS)
    if kind < 0.75:
        return [draw_value(draw, depth + 1) for _ in range(draw.randint(0, 3))]
    return {draw.choice(KEYS): draw_value(draw, depth + 1) for _ in range(draw.randint(0, 4))}


def draw_chat(draw: random.Random) -> Any:
    call = {"type": "function", "function": {"name": "f", "arguments": draw.choice(["{}", {}])}}
    chat: list[Any] = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": None, "tool_calls": [call], "weight": draw.choice([0, 1])},
        {"role": "tool", "content": "x"},
        {"role": "assistant", "content": "Done."},
    ]
    place = draw.choice(chat)
    if draw.random() < 0.6:
        place[draw.choice(KEYS)] = draw_value(draw, 2)
    return chat[: draw.randint(1, 4)]


def draw_row(draw: random.Random) -> Any:
    row: Any = {"text": "Ada finds it.", "prompt": "Who?", "chosen": "Ada.", "rejected": "Ben."}
    if draw.random() < 0.4:
        label = draw.choice([True, False, "good", 3])
        row = draw.choice([
            {"prompt": "Who?", "completion": "Ada.", "label": label},
            {"text": "Ada finds it.", "label": label},
            {"anchor": "Ada", "positive": "Ada finds it."},
            {"sentence1": "Ada", "sentence2": "Ben", "score": 0.5},
        ])  # fmt: skip
    if draw.random() < 0.3:
        row = {**row, "text": draw_chat(draw), "prompt": draw_chat(draw)}
    for _ in range(draw.randint(0, 2)):
        row[draw.choice(KEYS)] = draw_value(draw)
    return draw_value(draw) if draw.random() < 0.1 else row


def damage(draw: random.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(draw.randint(0, 3)):
        if changed:
            changed[draw.randrange(len(changed))] = draw.randrange(256)
    return bytes(changed[: draw.randint(0, len(changed))] if draw.random() < 0.2 else changed)


def write_file(draw: random.Random, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    if draw.random() < 0.05:
        file.symlink_to(draw.choice([".", "nowhere", "a.jsonl"]))
        return
    rows = [draw_row(draw) for _ in range(draw.randint(0, 6))]
    if file.suffix == ".parquet":
        try:
            parquet.write_table(
                arrow.Table.from_pylist([r for r in rows if isinstance(r, dict)]), file
            )
        except (arrow.ArrowException, UnicodeEncodeError, OverflowError, NotImplementedError):
            file.write_bytes(b"PAR1")
        content = file.read_bytes()
    elif set(file.suffixes) & {".csv", ".tsv"}:
        content = as_table(rows, "\t" if ".tsv" in file.suffixes else ",")
    else:
        content = "\n".join(map(json.dumps, rows)).encode()
    if draw.random() < 0.3:
        content = damage(draw, content)
    content = COMPRESS.get(file.suffix.lower(), bytes)(content)
    file.write_bytes(content if draw.random() < 0.7 else damage(draw, content))


def as_table(rows: list[Any], delimiter: str) -> bytes:
    """Returns rows as CSV, lists and objects in their cells as JSON."""
    objects = [row for row in rows if isinstance(row, dict)]
    names = list(dict.fromkeys(name for row in objects for name in row))
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, escapechar="\\")
    writer.writerow(names)
    for row in objects:
        cells = (row.get(name, "") for name in names)
        writer.writerow([c if isinstance(c, str) else json.dumps(c) for c in cells])
    return text.getvalue().encode("utf-8", "surrogatepass")


def draw_folder(draw: random.Random, folder: Path) -> Path:
    names = draw.sample(NAMES, draw.randint(1, 3))
    if draw.random() < 0.5:
        suffix = draw.choice([".jsonl", ".parquet", ".txt", ".csv", ".tsv", ".gz", ".zst"])
        names = [name for name in NAMES if name.endswith(suffix)][: draw.randint(1, 3)]
    for name in names:
        write_file(draw, folder / name)
    # A configuration itself cannot hold a path that is no Unicode.
    one = names[0] if names[0].isprintable() else ""
    return folder / one if draw.random() < 0.4 else folder


def error_of(attempt: Callable[[], object]) -> str:
    """Returns the message of the one error that is expected, or nothing."""
    try:
        attempt()
    except TrainingError as error:
        return str(error)
    return ""


def check_message(message: str, seed: int) -> None:
    assert message.encode(), seed
    assert len(message) < 3000, seed
    assert "\n" not in message, (seed, message)


def sections_for(method: str, model: Path, data: Path, section: dict[str, Any]) -> dict[str, Any]:
    """Returns the configuration of a method for a folder."""
    needs = METHODS[method]
    training = {"method": method, **needs.get("training", {})}
    sections = sections_of(model, data, training=training, data=section)
    if "task" in needs:
        sections["task"] = needs["task"]
        sections["model"]["family"] = needs["family"]
    return sections


@pytest.mark.parametrize("start", range(0, NUM_SEEDS, 25))
def test_damaged_data_gives_rows_or_one_clear_error(
    start: int, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    monkeypatch.setattr(prepare, "load_tokenizer", lambda _: tokenizer)
    for seed in range(start, start + 25):
        draw = random.Random(seed)
        data = draw_folder(draw, tmp_path / str(seed))
        method = draw.choice(["sft"] * len(METHODS) + list(METHODS))
        section = {
            "on_bad_row": draw.choice(["stop", "skip"]),
            "pack": method == "sft" and seed % 5 == 0,
            "format": draw.choice(FORMATS) if method == "sft" else "auto",
        }
        job = job_of(tmp_path / f"run{seed}", sections_for(method, model, data, section))
        message = error_of(lambda data=data: data_fingerprint(str(data)))  # type: ignore[misc]
        counts: dict[str, Any] = {}
        message = message or error_of(
            lambda job=job, counts=counts: counts.update(  # type: ignore[misc]
                prepare._write_tables(job.cfg, job.folder / "data")
            )
        )
        if message:
            check_message(message, seed)
            continue
        rows = list(prepare.train_table(job))
        assert counts["num_examples"] == len(rows), seed
        json.dumps(counts)


@pytest.mark.parametrize("start", range(0, NUM_SEEDS, 50))
def test_damaged_folders_of_images_give_rows_or_one_clear_error(start: int, tmp_path: Path) -> None:
    for seed in range(start, start + 50):
        draw = random.Random(seed)
        folder = tmp_path / str(seed)
        data = draw_folder(draw, folder)
        folder.joinpath("a.png").write_bytes(b"\x89PNG")
        (folder / "metadata.jsonl").unlink(missing_ok=True)
        write_file(draw, folder / draw.choice(["metadata.jsonl", "a.txt"]))
        section = {
            "dataset": str(data), "eval_dataset": None, "eval_share": 0, "subset": None,
            "on_bad_row": draw.choice(["stop", "skip"]), "image_field": "image",
            "caption_field": "text", "resolution": 8,
        }  # fmt: skip
        if message := error_of(lambda section=section: read_images(section)):  # type: ignore[misc]
            check_message(message, seed)


def read_images(section: dict[str, Any]) -> None:
    cfg = load_model_config({"task": "image-generation"}).to_cfg()
    images, _ = load_images({**cfg, "data": {**cfg["data"], **section}})
    images.get(range(len(images)), [CENTER] * len(images))
