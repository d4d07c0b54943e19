"""What workers take, and what a machine lacks for them."""

from __future__ import annotations

import os
from typing import Any

import pytest

from truthgpt_serve.config import ModelConfig, load_model_config
from truthgpt_serve.training.workers import Workers, count_workers, find_shortage

CORES = os.cpu_count() or 1


def configure(**hardware: Any) -> ModelConfig:
    model = {"name_or_path": "a"}
    return load_model_config({"model": model, "hardware": hardware}, place="test")


@pytest.mark.parametrize(("gpus", "number"), [(4, 4), (0.5, 1), (0, 1), ("auto", 1)])
def test_there_are_as_many_workers_as_gpus(gpus: float | str, number: int) -> None:
    assert count_workers(configure(gpus=gpus)) == number


@pytest.mark.parametrize(
    ("workers", "machine_gpus", "message"),
    [
        (Workers(4, 1, 1), 0, "hardware.gpus: 4 GPUs are needed, and this machine has none"),
        (Workers(4, 1, 0.5), 1, "hardware.gpus: 2 GPUs are needed, and this machine has 1"),
        (Workers(99_999, 1, 0), 0, "--workers: 99,999 workers need a core each"),
    ],
)
def test_what_a_machine_lacks_is_named(workers: Workers, machine_gpus: float, message: str) -> None:
    said = find_shortage(configure(gpus=4), workers, machine_gpus)
    assert said is not None
    assert message in said
    assert "RAY_ADDRESS" in said


@pytest.mark.parametrize("workers", [Workers(1, 64, 0), Workers(CORES, 1, 0), Workers(1, 1, 1)])
def test_what_a_machine_has_is_no_shortage(workers: Workers) -> None:
    assert find_shortage(configure(), workers, 1) is None
