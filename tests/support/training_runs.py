"""Short real training runs in the test's own process, on a Llama of 0.6 million parameters.

Knows no test.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from truthgpt_serve.config import load_model_config
from truthgpt_serve.training.events import read_events
from truthgpt_serve.training.guards import free_bytes
from truthgpt_serve.training.job import TrainingJob
from truthgpt_serve.training.loops import find_loop, load_loop
from truthgpt_serve.training.monitor import RunMonitor

NAMES = ("Ada", "Ben", "Cleo", "Dan")
THINGS = ("river", "clock", "garden", "letter", "lantern")


def sentences(number: int, *, seed: int = 0) -> list[str]:
    """Returns short texts, each of another length."""
    draw = random.Random(seed)
    return [
        " ".join(
            f"{draw.choice(NAMES)} finds the {draw.choice(THINGS)}."
            for _ in range(draw.randint(1, 4))
        )
        for _ in range(number)
    ]


def write_rows(file: Path, rows: list[Any]) -> Path:
    """Writes JSONL."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def sections_of(model: Path, file: Path, /, **given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a model's configuration: float32 on one CPU core, four rows a step."""
    sections: dict[str, Any] = {
        "run_name": "short",
        "model": {"name_or_path": str(model)},
        "training": {
            "epochs": 1,
            "train_batch_size": 2,
            "grad_accum_steps": 2,
            "learning_rate": 1e-3,
            "mixed_precision": "no",
            "tracker": "none",
            "early_stopping_patience": 0,
        },
        "model_optim": {"gradient_checkpointing": False},
        "hardware": {"gpus": 0, "cpus": 1},
        "data": {"dataset": str(file), "max_seq_len": 64},
    }
    for name, section in given.items():
        sections[name] = {**sections.get(name, {}), **section}
    return sections


def job_of(
    folder: Path, sections: Mapping[str, Any], *, checkpoint: Path | None = None
) -> TrainingJob:
    """Returns the job of one worker."""
    cfg = load_model_config(sections, place="test").to_cfg()
    return TrainingJob(cfg, folder, checkpoint, 1)


def run(
    job: TrainingJob,
    *,
    free: Callable[[Path], int] = free_bytes,
    monitor_class: type[RunMonitor] = RunMonitor,
) -> list[float]:
    """Prepares the data and trains, as the command and a worker of it do; returns the losses."""
    loop = load_loop(find_loop(job.cfg))
    loop.prepare(job)
    with monitor_class(job, free=free) as monitor:
        loop.train(job, monitor)
    return losses(job.folder)


def losses(folder: Path) -> list[float]:
    """Returns the loss of each step."""
    return [event["loss"] for event in read_events(folder) if event["event"] == "step"]
