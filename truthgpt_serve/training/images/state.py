"""Writes and reads checkpoints.

Everything that the rest of a run depends on: weights and their average, optimizer, schedule, loss
scale, generators, the best evaluation. The position in the data follows from the number of steps.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from truthgpt_serve.training.guards import reading_checkpoint
from truthgpt_serve.training.images.workers import generator_states, restore_generators
from truthgpt_serve.training.job import Monitor
from truthgpt_serve.training.run_folder import (
    CHECKPOINTS,
    begin_checkpoint,
    finish_checkpoint,
    prune_checkpoints,
)

WEIGHTS = "weights.safetensors"
AVERAGE = "average.safetensors"
STATE = "state.pt"


@dataclass(slots=True)
class Progress:
    """How far a run is.

    Attributes:
        step: Optimizer steps behind it.
        step_size: Examples of a step; with it the position in the data.
        best_loss: Of all evaluations, or None before the first.
        best_step: After which it was found.
        num_worse: Evaluations since then.
    """

    step: int
    step_size: int
    best_loss: float | None = None
    best_step: int = 0
    num_worse: int = 0

    def note(self, loss: float) -> bool:
        """Takes an evaluation's loss; returns whether it is the best so far."""
        if self.best_loss is None or loss < self.best_loss:
            self.best_loss, self.best_step, self.num_worse = loss, self.step, 0
            return True
        self.num_worse += 1
        return False


@dataclass(slots=True)
class Trained:
    """Everything that changes while a model is trained.

    Attributes:
        accelerator: Of accelerate.
        weights: The trained parameters by name.
        optimizer: Of accelerate.
        schedule: Of the learning rate.
        average: The EMAModel of the parameters, or None.
        progress: How far it is.
    """

    accelerator: Any
    weights: dict[str, Any]
    optimizer: Any
    schedule: Any
    average: Any | None
    progress: Progress

    def size_bytes(self) -> int:
        """Returns about what a checkpoint takes on disk: weights, average, two moments."""
        weights: int = sum(one.numel() * one.element_size() for one in self.weights.values())
        return weights * (3 if self.average is None else 4)

    def averaged(self) -> dict[str, Any]:
        """Returns the weights that are the result: the averaged ones, if there are such."""
        if self.average is None:
            return self.weights
        return dict(zip(self.weights, self.average.shadow_params, strict=True))


def save_checkpoint(trained: Trained, folder: Path, keep: int, monitor: Monitor) -> None:
    """Writes a checkpoint of all workers' state, and removes older ones.

    Raises:
        TrainingError: The disk is full.
    """
    accelerator, progress = trained.accelerator, trained.progress
    generators = generator_states(accelerator)
    if accelerator.is_main_process:
        monitor.check_space(trained.size_bytes())
        unfinished = begin_checkpoint(folder, progress.step)
        _write(trained, generators, unfinished)
        finish_checkpoint(unfinished)
        also = [] if progress.best_loss is None else [progress.best_step]
        prune_checkpoints(folder, keep, also=also)
    accelerator.wait_for_everyone()


def _write(trained: Trained, generators: list[dict[str, Any]], folder: Path) -> None:
    save_file(_contiguous(trained.weights), folder / WEIGHTS)
    average = None
    if trained.average is not None:
        save_file(_contiguous(trained.averaged()), folder / AVERAGE)
        average = {
            name: value
            for name, value in trained.average.state_dict().items()
            if name != "shadow_params"
        }
    scaler = trained.accelerator.scaler
    state = {
        "progress": asdict(trained.progress),
        "optimizer": trained.optimizer.state_dict(),
        "schedule": trained.schedule.state_dict(),
        "scaler": None if scaler is None else scaler.state_dict(),
        "average": average,
        "generators": generators,
    }
    torch.save(state, folder / STATE)


def _contiguous(weights: dict[str, Any]) -> dict[str, Any]:
    return {name: value.detach().contiguous() for name, value in weights.items()}


def load_checkpoint(trained: Trained, folder: Path) -> None:
    """Puts everything back as it was when the checkpoint was written.

    Raises:
        TrainingError: It is damaged, or of another model or step size.
    """
    with reading_checkpoint(folder):
        state = torch.load(folder / STATE, map_location="cpu", weights_only=True)
        progress = Progress(**state["progress"])
        if progress.step_size != trained.progress.step_size:
            message = f"its steps have {progress.step_size} examples, this run's"
            raise ValueError(f"{message} {trained.progress.step_size}")
        load_weights(trained.weights, folder / WEIGHTS)
        trained.optimizer.load_state_dict(state["optimizer"])
        trained.schedule.load_state_dict(state["schedule"])
        if trained.accelerator.scaler is not None and state["scaler"] is not None:
            trained.accelerator.scaler.load_state_dict(state["scaler"])
        if trained.average is not None:
            load_weights(trained.averaged(), folder / AVERAGE)
            trained.average.load_state_dict(state["average"])
        trained.progress = progress
        restore_generators(state["generators"], trained.accelerator)


def load_best(trained: Trained, folder: Path) -> None:
    """Puts back the weights of the best evaluation, where they are not the newest anyway."""
    progress = trained.progress
    if progress.best_loss is None or progress.best_step == progress.step:
        return
    checkpoint = folder / CHECKPOINTS / f"step-{progress.best_step}"
    load_weights(trained.weights, checkpoint / WEIGHTS)
    if trained.average is not None:
        load_weights(trained.averaged(), checkpoint / AVERAGE)


def load_weights(weights: dict[str, Any], file: Path) -> None:
    """Copies a file's tensors into the parameters of the same names.

    Raises:
        ValueError: The names differ.
    """
    loaded = load_file(file)
    if loaded.keys() != weights.keys():
        strange = sorted(loaded.keys() ^ weights.keys())[0]
        raise ValueError(f"{file.name} is of another model: {strange!r} is only in one of them")
    with torch.no_grad():
        for name, value in weights.items():
            value.copy_(loaded[name])
