"""Trains a ControlNet for the UNet of a pipeline, which stays as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from truthgpt_serve.training.errors import TrainingError
from truthgpt_serve.training.images.captions import Captioner
from truthgpt_serve.training.images.component import Component, refuse_settings
from truthgpt_serve.training.images.data.rows import Batch
from truthgpt_serve.training.images.kinds.base import Conditions, Kind
from truthgpt_serve.training.images.kinds.find import kind_of
from truthgpt_serve.training.images.latent_training import (
    add_noise,
    enable_checkpointing,
    move_parts,
    score,
)
from truthgpt_serve.training.images.objectives import Noised
from truthgpt_serve.training.images.pipelines import (
    choose_dtype,
    create_controlnet,
    save_controlnet,
)
from truthgpt_serve.training.job import Monitor, TrainingJob


class _Trainee(torch.nn.Module):  # type: ignore[misc] # torch counts as Any here
    """The ControlNet, and the frozen UNet behind it, in one call."""

    def __init__(self, kind: Kind, controlnet: Any) -> None:
        super().__init__()
        self._kind = kind
        self.controlnet = controlnet

    def forward(self, noised: Noised, told: Conditions, hints: Any) -> Any:
        """Returns the UNet's output; `hints` in [0, 1], shape (batch, 3, height, width)."""
        down, mid = self.controlnet(
            noised.noisy,
            noised.timesteps,
            controlnet_cond=hints,
            return_dict=False,
            **self._kind.unet_arguments(told, noised.time_ids),
        )
        dtype = self._kind.denoiser.dtype
        return self._kind.predict(
            self._kind.denoiser,
            noised,
            told,
            down_block_additional_residuals=[one.to(dtype) for one in down],
            mid_block_additional_residual=mid.to(dtype),
        )


class ControlNetLearner:
    """What is learned of a batch; see `Learner`.

    Args:
        kind: Of the pipeline, on the CPU; its parts are moved to the device.
        cfg: The configuration.
        device: Where to train.

    Attributes:
        kind: Of the pipeline.
        controlnet: What is trained; it begins with the weights of the UNet's first half.
    """

    def __init__(self, kind: Kind, cfg: dict[str, Any], device: Any) -> None:
        training, optim = cfg["training"], cfg["model_optim"]
        self.kind = kind
        self._objective = kind.objective(training["min_snr_gamma"])
        self.latent_shape = kind.latent_shape
        self.controlnet = create_controlnet(kind.denoiser, kind.vae.config).float()
        move_parts(kind, device)
        self.controlnet.to(device)
        self.controlnet.requires_grad_(True)
        self.controlnet.train()
        if optim["gradient_checkpointing"]:
            enable_checkpointing(self.controlnet)
            enable_checkpointing(kind.denoiser)
        if optim["compile"]:
            # In place: the names of the weights stay what they are.
            self.controlnet.compile()
            kind.denoiser.compile()
        self._captioner = Captioner(kind, device, remember=True)
        self.module = _Trainee(kind, self.controlnet)

    def losses(self, module: Any, batch: Batch) -> Any:
        """Returns the loss of each example; see `Learner`."""
        noised = add_noise(self.kind, self._objective, batch)
        hints = batch["conditioning"].float() / 255
        output = module(noised, self._captioner(noised.captions), hints)
        return score(self._objective, output, noised, len(batch["captions"]), 0.0)


class ControlNetComponent(Component[ControlNetLearner]):
    """`training.component: controlnet`."""

    def check(self, cfg: dict[str, Any]) -> None:
        """See `Component`."""
        refuse_settings(cfg)

    def check_pipeline(self, cfg: dict[str, Any], folder: Path) -> None:
        """Raises `TrainingError` for a pipeline that takes no ControlNet."""
        kind, index = kind_of(folder)
        if not kind.takes_controlnet:
            message = f"training.component: controlnet is not known for {index['_class_name']}"
            raise TrainingError(f"{message} (it is for Stable Diffusion 1, 2 and XL)")

    def create_learner(self, kind: Kind, cfg: dict[str, Any], device: Any) -> ControlNetLearner:
        """See `Component`."""
        return ControlNetLearner(kind, cfg, device)

    def save(
        self, learner: ControlNetLearner, folder: Path, job: TrainingJob, monitor: Monitor
    ) -> None:
        """Writes the ControlNet."""
        dtype = choose_dtype(job.cfg["model_optim"]["dtype"], folder, learner.kind.denoiser_name)
        save_controlnet(learner.controlnet.to(dtype), job.folder, monitor)


_COMPONENT = ControlNetComponent()
prepare, train = _COMPONENT.prepare, _COMPONENT.train
