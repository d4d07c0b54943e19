"""Several workers of a short training run, on this machine and without Ray.

They are forked from one process that has imported what trains.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from truthgpt_serve.training.job import TrainingJob
from truthgpt_serve.training.loops import find_loop, load_loop
from truthgpt_serve.training.monitor import RunMonitor

TIMEOUT_S = 240
_FORKS = get_context("forkserver")
_FORKS.set_forkserver_preload(
    [__name__, "truthgpt_serve.training.text.sft", "truthgpt_serve.training.text.trainer.sharding"]
)


def run_in_workers(work: Callable[..., None], *arguments: Any, number: int = 2) -> list[int | None]:
    """Calls `work(rank, *arguments)` in processes that torch has connected.

    Returns:
        The exit code of each.
    """
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        processes = [
            _FORKS.Process(target=_start, args=(rank, number, store, work, arguments), daemon=True)
            for rank in range(number)
        ]
        try:
            for process in processes:
                process.start()
            for process in processes:
                process.join(TIMEOUT_S)
        finally:
            for process in processes:
                process.kill()
                process.join(10)
    return [process.exitcode for process in processes]


def _start(
    rank: int, number: int, store: str, work: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": number, "LOCAL_WORLD_SIZE": number}
    os.environ.update({name: str(value) for name, value in place.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="1", GLOO_SOCKET_IFNAME="lo")
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=number
    )
    work(rank, *arguments)
    torch.distributed.destroy_process_group()


def train_in_workers(
    job: TrainingJob, *, monitor_class: type[RunMonitor] = RunMonitor, number: int = 2
) -> list[int | None]:
    """Prepares the data and trains, as the command and its workers do; returns the exit codes."""
    job = replace(job, num_workers=number)
    load_loop(find_loop(job.cfg)).prepare(job)
    return run_in_workers(_train, job, monitor_class, number=number)


def _train(rank: int, job: TrainingJob, monitor_class: type[RunMonitor]) -> None:
    with monitor_class(job, rank) as monitor:
        load_loop(find_loop(job.cfg)).train(job, monitor)
