"""What a training loop is given: its job, and the monitor that it reports to."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from truthgpt_serve.config.hiding import HiddenValues
from truthgpt_serve.training.generation.record import Sample


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """One run, as every worker of it is given it.

    Attributes:
        cfg: The configuration as a plain nested dict, its local paths absolute.
        folder: The run's folder, which holds `checkpoints/`, `logs/` and in the end `model/`.
        checkpoint: The folder of the checkpoint to go on from, or None for a fresh start.
        num_workers: How many workers train together; `torch.distributed` is set up above 1.
        module_folders: Where a user's modules are searched last.
        hidden: The values of variables, which nothing that is written or sent may show.
    """

    cfg: dict[str, Any]
    folder: Path
    checkpoint: Path | None
    num_workers: int
    module_folders: Sequence[str] = ()
    hidden: HiddenValues = field(default_factory=HiddenValues)

    def search_modules(self) -> None:
        """Has this process find the user's modules."""
        sys.path += [path for path in self.module_folders if path not in sys.path]


@dataclass(frozen=True, slots=True)
class WorkerUse:
    """What one of several workers did in a step, and what it takes.

    Attributes:
        num_units: What it has read.
        memory_bytes: The most that it has held so far.
    """

    num_units: int
    memory_bytes: int


class Monitor(Protocol):
    """What a loop reports to. Every worker has one; only that of rank 0 prints and records."""

    def begin(self, *, num_steps: int, first_step: int, units: str) -> None:
        """Starts the progress bar.

        Args:
            num_steps: Optimizer steps of the whole run.
            first_step: Steps that a resumed run has behind it already.
            units: What `num_units` of `step` counts: `tokens` or `images`.
        """

    def step(
        self,
        step: int,
        *,
        loss: float,
        learning_rate: float,
        num_units: int,
        workers: Sequence[WorkerUse] = (),
        **more: float,
    ) -> None:
        """Reports one optimizer step.

        Args:
            step: Its number, from 1.
            loss: Its mean loss over all workers.
            learning_rate: The rate that it used.
            num_units: What all workers together have read in it.
            workers: What each of several workers did and took, by rank.
            **more: Further numbers to record.

        Raises:
            TrainingError: The loss is not a finite number.
        """

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        """Reports the numbers of one evaluation after `step`."""

    def sampled(self, step: int, samples: Sequence[Sample]) -> None:
        """Reports what the model made of `training.samples` after `step`."""

    def should_stop(self) -> bool:
        """Returns whether this process was asked to end: Ctrl-C or SIGTERM.

        Loops ask once a step, agree over all workers, save a checkpoint and return.
        """

    def check_space(self, num_bytes: int) -> None:
        """Checks that the run's folder can take `num_bytes` more.

        Raises:
            TrainingError: It cannot; names the folder, the needed and the free bytes.
        """
