"""What workers tell each other of a step, in two real processes."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from tests.support.training_workers import run_in_workers
from truthgpt_serve.training.text.trainer.exchange import exchange_use


def work(rank: int, folder: Path) -> None:
    stop, uses = exchange_use(3 + rank, rank == 1, 2, torch.device("cpu"))
    found = [stop, [use.num_units for use in uses], [use.memory_bytes for use in uses]]
    (folder / f"{rank}.json").write_text(json.dumps(found))


def test_every_worker_knows_what_each_did_and_took(tmp_path: Path) -> None:
    assert run_in_workers(work, tmp_path) == [0, 0]
    one, other = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert one == other
    assert one[:2] == [True, [3, 4]]
    assert all(memory > 1 << 20 for memory in one[2])
