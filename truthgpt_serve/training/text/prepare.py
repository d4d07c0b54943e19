"""Reads the data once into tables of examples, and finds out what the plan needs to know.

Runs in the command's own process, before any worker.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from truthgpt_serve.config.training.methods import method_of, rows_per_example
from truthgpt_serve.training.data import (
    BadRow,
    BadRows,
    Inventory,
    Row,
    data_fingerprint,
    read_rows,
)
from truthgpt_serve.training.data.splits import Split
from truthgpt_serve.training.errors import TrainingError
from truthgpt_serve.training.generation.texts import check_prompts
from truthgpt_serve.training.job import TrainingJob
from truthgpt_serve.training.memory.optimizers import state_bytes
from truthgpt_serve.training.plan import Facts
from truthgpt_serve.training.run_folder import DATA, read_json, write_json
from truthgpt_serve.training.text.examples import Example
from truthgpt_serve.training.text.makers import ExampleMaker
from truthgpt_serve.training.text.models import load_tokenizer, measure_model
from truthgpt_serve.training.text.samples import SampleReader
from truthgpt_serve.training.text.shown import example_lines
from truthgpt_serve.training.text.tables import SCHEMAS, TableWriter, read_table

TRAIN = "train.arrow"
EVAL = "eval.arrow"
COUNTS = "counts.json"
FORMAT = 3
"""Of what is prepared; another number makes it again."""


def prepare(job: TrainingJob) -> Facts:
    """Writes `data/train.arrow` and perhaps `data/eval.arrow`, and returns the plan's facts.

    Tables that are there already from the same data and settings are kept.

    Raises:
        TrainingError: The data cannot be used, a bad row stops the run, or one worker has nobody to
            share its weights with.
    """
    num_shards = _num_shards(job)
    folder = job.folder / DATA
    if job.cfg["training"]["samples"] is not None:
        check_prompts(job.cfg, load_tokenizer(job.cfg))
    key = _key(job.cfg)
    counts = read_json(folder / COUNTS)
    if counts is None or counts.get("key") != key:
        (folder / COUNTS).unlink(missing_ok=True)
        counts = {"key": key, **_write_tables(job.cfg, folder)}
        write_json(folder / COUNTS, counts)
    measure = measure_model(job.cfg, counts["longest"])
    return Facts(
        units="tokens",
        num_examples=counts["num_examples"],
        num_units=counts["num_tokens"],
        num_eval_examples=counts["num_eval_examples"],
        num_bad_rows=counts["num_bad_rows"],
        bad_rows=counts["bad_rows"],
        sources=counts["sources"],
        num_parameters=measure.num_parameters,
        num_trainable=measure.num_trainable,
        weight_bytes=measure.weight_bytes,
        activation_bytes=measure.activation_bytes,
        optimizer_bytes=state_bytes(job.cfg["training"], measure.num_trainable),
        num_shards=num_shards,
        gathered_bytes=measure.gathered_bytes,
        notes=[*measure.notes, *_shard_notes(num_shards)],
        rows_per_example=rows_per_example(job.cfg["training"]),
        drops_rest=method_of(job.cfg).samples,
    )


def _num_shards(job: TrainingJob) -> int:
    if job.cfg["training"]["fsdp"] is None:
        return 1
    if job.num_workers < 2:
        fix = "add --workers 2, or remove it"
        raise TrainingError(f"training.fsdp: shards weights over workers, and there is one ({fix})")
    return job.num_workers


def _shard_notes(num_shards: int) -> Iterator[str]:
    if num_shards > 1:
        yield f"weights, gradients and optimizer are sharded over {num_shards} workers"


def train_table(job: TrainingJob) -> Any:
    """Returns the examples to learn from, as a `datasets.Dataset`."""
    return read_table(job.folder / DATA / TRAIN)


def eval_table(job: TrainingJob) -> Any | None:
    """Returns the examples to evaluate on, or None."""
    file = job.folder / DATA / EVAL
    return read_table(file) if file.exists() else None


def _key(cfg: Mapping[str, Any]) -> str:
    data = {name: value for name, value in cfg["data"].items() if name != "num_loader_workers"}
    fingerprint = data_fingerprint(data["dataset"], data["eval_dataset"], subset=data["subset"])
    training = {name: cfg["training"][name] for name in ("method", "loss_on")}
    what = [FORMAT, data, training, cfg["model"], cfg["seed"], fingerprint]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def _write_tables(cfg: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    data = cfg["data"]
    bad_rows = BadRows(data["on_bad_row"])
    tokenizer = load_tokenizer(cfg)
    tally = _Tally(cfg, tokenizer)
    (folder / EVAL).unlink(missing_ok=True)
    schema = SCHEMAS.get(method_of(cfg).rows)
    with ExitStack() as stack:
        train = stack.enter_context(TableWriter(folder / TRAIN, schema))
        evaluated = train
        if data["eval_dataset"] is not None or data["eval_share"]:
            evaluated = stack.enter_context(TableWriter(folder / EVAL, schema))
        readers = SampleReader(cfg, tokenizer), SampleReader(cfg, tokenizer)
        to_train = ExampleMaker(cfg, tokenizer, readers[0])
        to_eval = ExampleMaker(cfg, tokenizer, readers[data["eval_dataset"] is not None])
        read, read_eval = Inventory(), Inventory()
        for index, row in enumerate(_read(data, "train", bad_rows, read)):
            if _is_held_out(cfg["seed"], index, data["eval_share"]):
                _add(row, to_eval, evaluated.add, bad_rows)
            else:
                _add(row, to_train, lambda example: train.add(tally(example)), bad_rows)
        if data["eval_dataset"] is not None:
            for row in _read(data, "validation", bad_rows, read_eval):
                _add(row, to_eval, evaluated.add, bad_rows)
        if not train.num_rows or not evaluated.num_rows:
            num_held_out = evaluated.num_rows if data["eval_share"] else 0
            what = "dataset" if not train.num_rows else ""
            raise TrainingError(_nothing(data, what, bad_rows, to_train.num_dropped, num_held_out))
    return {
        "num_examples": train.num_rows,
        "num_eval_examples": 0 if evaluated is train else evaluated.num_rows,
        "num_tokens": tally.num_tokens,
        "longest": tally.longest,
        "num_bad_rows": bad_rows.count,
        "bad_rows": bad_rows.shown,
        "sources": [
            *read.lines(),
            *readers[0].lines(),
            *(f"evaluation: {line}" for line in (*read_eval.lines(), *readers[1].lines())),
            *to_train.lines(),
            *_cut_lines(data, [to_train, to_eval], tally.num_cut),
            *example_lines(tally.first or {}, tokenizer),
        ],
    }


def _cut_lines(
    data: Mapping[str, Any], makers: Sequence[ExampleMaker], num_cut: int
) -> Iterator[str]:
    num_cut += sum(maker.num_cut for maker in makers)
    num_dropped = sum(maker.num_dropped for maker in makers)
    if num_cut or num_dropped:
        limit = f"data.max_seq_len {data['max_seq_len']:,}"
        yield f"cut      {num_cut:,} examples at {limit}; {num_dropped:,} dropped: nothing to learn"


def _nothing(
    data: Mapping[str, Any], what: str, bad_rows: BadRows, num_dropped: int, num_held_out: int
) -> str:
    skipped = f", after {bad_rows.count} bad rows: {bad_rows.shown[0]}" if bad_rows.count else ""
    if num_dropped:
        skipped += f", after {num_dropped:,} rows of which data.max_seq_len leaves nothing to learn"
    if not what:
        fix = "raise data.eval_share, or name other data.eval_dataset"
        return f"there is nothing to evaluate on{skipped} ({fix})"
    if data["pack"]:
        skipped += f"; pack needs at least data.max_seq_len {data['max_seq_len']} tokens"
    if num_held_out:
        fix = "lower data.eval_share, or add rows"
        skipped += f", after {num_held_out:,} examples that data.eval_share keeps apart ({fix})"
    return f"data.dataset {data['dataset']!r} holds nothing to learn from{skipped}"


def _read(
    data: Mapping[str, Any], split: Split, bad_rows: BadRows, inventory: Inventory
) -> Iterator[Row]:
    return read_rows(
        data["dataset" if split == "train" else "eval_dataset"],
        bad_rows,
        subset=data["subset"],
        text_field=data["prompt_field"] or data["text_field"] or "text",
        split=split,
        content="text",
        inventory=inventory,
    )


def _is_held_out(seed: int, index: int, share: float) -> bool:
    """Returns whether a row is kept to evaluate on: the same rows on every machine."""
    if not share:
        return False
    digest = hashlib.blake2b(f"{seed}:{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) < share * 2**64


def _add(row: Row, make: ExampleMaker, add: Callable[[Example], None], bad_rows: BadRows) -> None:
    try:
        for example in make(row):
            add(example)
    except BadRow as error:
        bad_rows.report(row.place, str(error))


class _Tally:
    """Counts the tokens of training examples; pairs and prompts are tokenized for it."""

    def __init__(self, cfg: Mapping[str, Any], tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._max_len = cfg["data"]["max_seq_len"]
        training = cfg["training"]
        self._answers = 0
        if method_of(cfg).samples:
            self._answers = rows_per_example(training)
            self._max_len = None
        self._more = training["max_new_tokens"]
        self.num_tokens = 0
        self.longest = 0
        self.num_cut = 0
        self.first: Example | None = None

    def __call__(self, example: Example) -> Example:
        """Counts an example, and returns it."""
        self.first = self.first or example
        for length in self._lengths(example):
            self.num_tokens += length
            self.longest = max(self.longest, length)
        return example

    def _lengths(self, example: Example) -> list[int]:
        if found := [len(ids) for name, ids in example.items() if name.endswith("_ids")]:
            return found
        prompt = self._length(example["prompt"])
        if self._answers:
            return [prompt + self._more] * self._answers
        names = ("chosen", "rejected", "completion")
        answers = [self._length(example[name]) for name in names if name in example]
        self.num_cut += any(prompt + answer > self._max_len for answer in answers)
        return [min(prompt + answer, self._max_len) for answer in answers]

    def _length(self, value: Any) -> int:
        if isinstance(value, list):
            value = json.dumps(value)
        return len(self._tokenizer(value, verbose=False)["input_ids"])
