"""The record of a run, `run.json`: with what it began, so that it goes on with the same.

Lists the keys that may change between the parts of one run.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from truthgpt_serve.config.base import show_value
from truthgpt_serve.config.hiding import HiddenValues
from truthgpt_serve.training.data import data_fingerprint
from truthgpt_serve.training.errors import TrainingError
from truthgpt_serve.training.events import has_steps
from truthgpt_serve.training.job import TrainingJob
from truthgpt_serve.training.plan import Facts
from truthgpt_serve.training.run_folder import (
    MODEL,
    RECORD,
    latest_checkpoint,
    read_json,
    write_json,
)
from truthgpt_serve.training.shown_config import show_config, variable_digests

PACKAGES = (
    "truthgpt-serve",
    "torch",
    "transformers",
    "peft",
    "trl",
    "diffusers",
    "accelerate",
    "datasets",
    "ray",
)
SECTIONS = ("seed", "task", "model", "training", "model_optim", "data")
"""What makes the run what it is; how the result is named and served may change."""
FREE = frozenset(
    {
        "training.checkpoint_every",
        "training.keep_checkpoints",
        "training.log_every",
        "training.samples",
        "training.tracker",
        "data.num_loader_workers",
    }
)
"""Keys that change nothing in the losses, those below them included."""


def create_record(job: TrainingJob) -> dict[str, Any]:
    """Returns what a new run is to be compared with later; it shows variables by their names."""
    data, prior = job.cfg["data"], job.cfg["training"]["prior"]
    return {
        "config": show_config(job.cfg, job.hidden),
        "variables": variable_digests(_compared(job.cfg), job.hidden),
        "num_workers": job.num_workers,
        "data_fingerprint": data_fingerprint(
            data["dataset"],
            data["eval_dataset"],
            subset=data["subset"],
            images=prior["images"] if prior else None,
        ),
        "versions": _versions(),
    }


def describe_data(facts: Facts, hidden: HiddenValues) -> dict[str, Any]:
    """Returns what a run says of its data and model to those who only see its result."""
    return {
        "sources": [hidden.hide_long(line) for line in facts.sources if _is_about_files(line)],
        "units": facts.units,
        "num_examples": facts.num_examples,
        "num_units": facts.num_units,
        "num_eval_examples": facts.num_eval_examples,
        "num_bad_rows": facts.num_bad_rows,
        "num_parameters": facts.num_parameters,
        "num_trainable": facts.num_trainable,
    }


def _is_about_files(line: str) -> bool:
    """Returns whether a line of the plan shows nothing of what the files hold."""
    return not line.startswith(("example", " "))


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Writes `run.json`."""
    write_json(folder / RECORD, record)


def read_record(folder: Path) -> dict[str, Any] | None:
    """Returns the record of the run in this folder, or None if there is none."""
    record = read_json(folder / RECORD)
    return record if isinstance(record, dict) else None


def is_finished(folder: Path) -> bool:
    """Returns whether the run has its result: `model/` is written last, and in one move."""
    return (folder / MODEL).is_dir()


def has_trained(folder: Path) -> bool:
    """Returns whether the run in this folder has done a step, or more."""
    return is_finished(folder) or latest_checkpoint(folder) is not None or has_steps(folder)


def check_same(folder: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Checks that a run may go on with this configuration.

    Raises:
        TrainingError: Something that shapes the losses is another; all such keys are named.
    """
    changes = [
        f"{key}: was {show_value(before)}, is {show_value(now)}"
        for key, before, now in _differences(old.get("config", {}), new["config"])
    ]
    changes += _changed_variables(old, new)
    if old.get("num_workers") != new["num_workers"]:
        changes.append(f"--workers: was {old.get('num_workers')}, is {new['num_workers']}")
    if not changes and old.get("data_fingerprint") != new["data_fingerprint"]:
        changes.append("data.dataset: the files are others than at the start")
    if changes:
        fix = "put it back, or start a new run with another run_name or --out"
        listed = "\n  ".join(changes)
        raise TrainingError(
            f"{folder}: this run began with another configuration ({fix}):\n  {listed}"
        )


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    before, now = dict(_leaves(old)), dict(_leaves(new))
    for key in sorted(before.keys() | now.keys()):
        if not _is_free(key) and before.get(key) != now.get(key):
            yield key, before.get(key), now.get(key)


def _changed_variables(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    before, now = dict(_leaves(old.get("config", {}))), dict(_leaves(new["config"]))
    for key, digest in new["variables"].items():
        if before.get(key) == now[key] and old.get("variables", {}).get(key) != digest:
            yield f"{key}: {show_value(now[key])} stands for another value than at the start"


def _compared(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    return ((key, value) for key, value in _leaves(config) if not _is_free(key))


def _is_free(key: str) -> bool:
    return any(f"{key}.".startswith(f"{free}.") for free in FREE)


def _leaves(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for section in SECTIONS:
        value = config.get(section)
        yield from _walk(value, section) if isinstance(value, Mapping) else [(section, value)]


def _walk(section: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in section.items():
        key = f"{prefix}.{name}"
        if isinstance(value, Mapping):
            yield from _walk(value, key)
        else:
            yield key, value
