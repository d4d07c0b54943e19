"""Where the curves of a run go: TensorBoard, Weights & Biases or nowhere.

Imports the tracker's package only when it is asked for.
"""

from __future__ import annotations

import importlib.util
import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from truthgpt_serve.training.errors import TrainingError
from truthgpt_serve.training.generation.record import Sample
from truthgpt_serve.training.job import TrainingJob
from truthgpt_serve.training.run_folder import LOGS
from truthgpt_serve.training.shown_config import show_config

PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}
RUN_ID = "wandb-id"
STEP = "step"
"""Name of the curves' horizontal axis in Weights & Biases."""


class Tracker(Protocol):
    """Takes named numbers of a step."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Records the numbers of one step."""

    def log_samples(self, step: int, samples: Sequence[Sample]) -> None:
        """Records what the model made of some prompts after a step."""

    def close(self) -> None:
        """Writes what is left."""


class NoTracker:
    """Keeps nothing."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Does nothing."""

    def log_samples(self, step: int, samples: Sequence[Sample]) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


class TensorBoard:
    """Writes into the run's `logs/`; `tensorboard --logdir` shows it."""

    def __init__(self, folder: Path, first_step: int) -> None:
        from tensorboardX import SummaryWriter

        # A resumed run does some steps again: their first points are to vanish.
        purge = first_step + 1 if first_step else None
        self._writer = SummaryWriter(str(folder / LOGS), purge_step=purge, flush_secs=10)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Records the numbers of one step."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def log_samples(self, step: int, samples: Sequence[Sample]) -> None:
        """Records texts and images, each prompt by its number."""
        import numpy as np

        for index, sample in enumerate(samples):
            name = f"samples/{index}"
            if sample.image is not None:
                pixels = np.asarray(sample.image.convert("RGB"))
                self._writer.add_image(name, pixels, step, dataformats="HWC")
            # A block of code, for whatever a model writes is no Markdown.
            shown = f"{sample.prompt}\n---\n{_words_of(sample)}"
            self._writer.add_text(
                name, "".join(f"    {line}\n" for line in shown.split("\n")), step
            )

    def close(self) -> None:
        """Writes what is left."""
        self._writer.close()


class WeightsAndBiases:
    """Sends to a Weights & Biases project; its own environment variables say which and how.

    Args:
        folder: The run's; it keeps the id by which a resumed run goes on in the same curves.
        cfg: The whole configuration as it may be shown, which is sent as the run's own.

    Raises:
        TrainingError: No run could be begun there, such as without an API key.
    """

    def __init__(self, folder: Path, cfg: Mapping[str, Any]) -> None:
        import wandb

        logs = folder / LOGS
        logs.mkdir(parents=True, exist_ok=True)
        try:
            self._run = wandb.init(
                id=_keep_id(logs / RUN_ID),
                name=cfg["run_name"],
                dir=str(logs),
                config=dict(cfg),
                resume="allow",
            )
        except wandb.Error as error:
            fix = "wandb login, or WANDB_MODE=offline, or another tracker"
            raise TrainingError(f"training.tracker: wandb: {error} ({fix})") from error
        # Its own count of steps only grows; a resumed run does some steps again.
        self._run.define_metric("*", step_metric=STEP)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Records the numbers of one step."""
        self._run.log({STEP: step, **values})

    def log_samples(self, step: int, samples: Sequence[Sample]) -> None:
        """Records texts as a table, and images with their prompts."""
        import wandb

        table = wandb.Table(columns=["step", "prompt", "sample"])
        for sample in samples:
            table.add_data(step, sample.prompt, _words_of(sample))
        images = [wandb.Image(s.image, caption=s.prompt) for s in samples if s.image is not None]
        self._run.log({STEP: step, "samples": table, **({"images": images} if images else {})})

    def close(self) -> None:
        """Sends what is left."""
        import wandb

        self._run.finish()
        wandb.teardown()  # waits until its own process, which writes the files, has done so


def _words_of(sample: Sample) -> str:
    return "\n".join(part for part in (sample.text, sample.fault) if part)


def _keep_id(file: Path) -> str:
    """Returns what the file says; if nothing, an id that it says from now on."""
    kept = file.read_text().strip() if file.exists() else ""
    if not kept:
        kept = os.environ.get("WANDB_RUN_ID") or uuid.uuid4().hex
        file.write_text(kept)
    return kept


def check_tracker(name: str) -> None:
    """Checks that the package of a tracker is there.

    Raises:
        TrainingError: It is not; says what to install.
    """
    package = PACKAGES.get(name)
    if package is not None and importlib.util.find_spec(package) is None:
        fix = f"pip install {package}, or set another tracker"
        raise TrainingError(f"training.tracker: {name} needs the package {package!r} ({fix})")


def create_tracker(job: TrainingJob, first_step: int) -> Tracker:
    """Returns the tracker that `training.tracker` names."""
    name = job.cfg["training"]["tracker"]
    if name == "tensorboard":
        return TensorBoard(job.folder, first_step)
    if name == "wandb":
        return WeightsAndBiases(job.folder, show_config(job.cfg, job.hidden))
    return NoTracker()
