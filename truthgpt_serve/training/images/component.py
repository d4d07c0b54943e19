"""A run of one `training.component`: what is checked before, the course of it, what it leaves."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Generic, TypeVar

from truthgpt_serve.training.errors import TrainingError
from truthgpt_serve.training.images.facts import read_facts
from truthgpt_serve.training.images.kinds.base import Kind
from truthgpt_serve.training.images.latent_training import load_kind, run_on_latents
from truthgpt_serve.training.images.loop import Learner
from truthgpt_serve.training.images.pipelines import find_pipeline
from truthgpt_serve.training.images.workers import open_accelerator
from truthgpt_serve.training.job import Monitor, TrainingJob
from truthgpt_serve.training.plan import Facts

LearnerT = TypeVar("LearnerT", bound=Learner)


class Component(ABC, Generic[LearnerT]):
    """One value of `training.component`. `prepare` and `train` are those of a loop."""

    def prepare(self, job: TrainingJob) -> Facts:
        """Returns what the plan says of the run; reads rows, configs but no weights of the base.

        Raises:
            TrainingError: The configuration does not fit the pipeline, or the data cannot be read.
        """
        folder = self._find(job.cfg)
        return read_facts(job.cfg, folder, job.folder)

    def train(self, job: TrainingJob, monitor: Monitor) -> None:
        """Trains, and writes the result to the run's `model/` unless it was asked to stop.

        Raises:
            TrainingError: The configuration does not fit the pipeline, the data cannot be used,
                the loss is no number, or the disk is full.
        """
        cfg = job.cfg
        folder = self._find(cfg)
        accelerator = open_accelerator(cfg, find_unused=self.may_leave_out(cfg))
        if not self.begin(job, folder, accelerator, monitor):
            return
        kind = self.load(cfg, folder, accelerator.device)
        learner = self.create_learner(kind, cfg, accelerator.device)
        if not self.run(job, monitor, accelerator, kind, learner):
            return
        if accelerator.is_main_process:
            self.save(learner, folder, job, monitor)
        accelerator.wait_for_everyone()

    def _find(self, cfg: dict[str, Any]) -> Path:
        self.check(cfg)
        folder = find_pipeline(cfg)
        self.check_pipeline(cfg, folder)
        return folder

    @abstractmethod
    def check(self, cfg: dict[str, Any]) -> None:
        """Checks what a schema cannot see.

        Raises:
            TrainingError: Settings contradict each other, or one is of no use here.
        """

    def check_pipeline(self, cfg: dict[str, Any], folder: Path) -> None:
        """Checks the configuration against the pipeline's folder.

        Raises:
            TrainingError: The pipeline cannot be trained so.
        """

    def may_leave_out(self, cfg: dict[str, Any]) -> bool:
        """Returns whether some trained weights may stay out of a step's loss."""
        return False

    def begin(self, job: TrainingJob, folder: Path, accelerator: Any, monitor: Monitor) -> bool:
        """Does what comes before training; returns whether it is done, not asked to stop."""
        return True

    def load(self, cfg: dict[str, Any], folder: Path, device: Any) -> Kind:
        """Returns the pipeline, on the CPU."""
        return load_kind(cfg, folder, (), device)

    @abstractmethod
    def create_learner(self, kind: Kind, cfg: dict[str, Any], device: Any) -> LearnerT:
        """Returns what is trained; its parts are on the device."""

    def run(
        self, job: TrainingJob, monitor: Monitor, accelerator: Any, kind: Kind, learner: LearnerT
    ) -> bool:
        """Reads the data and trains; returns whether the run is at its end."""
        return run_on_latents(job, monitor, accelerator, kind, learner)

    @abstractmethod
    def save(self, learner: LearnerT, folder: Path, job: TrainingJob, monitor: Monitor) -> None:
        """Writes the result to the run's `model/`.

        Args:
            learner: With the weights that are the result.
            folder: Of the pipeline that the run began with.
            job: The run.
            monitor: Checks the disk.
        """


def refuse_settings(cfg: dict[str, Any], **more: bool) -> None:
    """Refuses what is for the denoiser only, where another component is trained.

    Args:
        cfg: The configuration.
        **more: Further keys of `training`, and whether they are set.

    Raises:
        TrainingError: Such a setting is there.
    """
    component, optim = cfg["training"]["component"], cfg["model_optim"]
    fix = "remove it, or train the denoiser"
    if cfg["model"]["adapter"]:
        fix = "remove it, or make one model of both first: truthgpt merge"
    denoisers = {
        "model.adapter": bool(cfg["model"]["adapter"]),
        "model_optim.lora.enabled": optim["lora"]["enabled"],
        "model_optim.quantization": optim["quantization"] is not None,
        "training.train_text_encoder": cfg["training"]["train_text_encoder"],
        **{f"training.{key}": is_set for key, is_set in more.items()},
    }
    for key, is_set in denoisers.items():
        if is_set:
            message = f"{key}: is of no use to training.component: {component}"
            raise TrainingError(f"{message} ({fix})")
