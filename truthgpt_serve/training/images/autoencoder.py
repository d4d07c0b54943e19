"""Trains the autoencoder of a latent diffusion pipeline; the denoiser no longer fits it then.

Reconstruction and a little KL only: the adversarial and perceptual losses of the literature need
networks whose weights are not at hand.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from truthgpt_serve.training.images.component import Component, refuse_settings
from truthgpt_serve.training.images.data.image_files import CENTER
from truthgpt_serve.training.images.data.rows import Batch
from truthgpt_serve.training.images.data.samples import Source
from truthgpt_serve.training.images.data.sources import Holder
from truthgpt_serve.training.images.kinds.base import Kind
from truthgpt_serve.training.images.kinds.find import create_kind
from truthgpt_serve.training.images.latent_training import enable_checkpointing
from truthgpt_serve.training.images.latents import encode_moments, measure_scale, to_signal
from truthgpt_serve.training.images.loop import Loop
from truthgpt_serve.training.images.pipelines import load_pipeline, save_pipeline
from truthgpt_serve.training.job import Monitor, TrainingJob

KL_WEIGHT = 1e-4
"""Of the divergence from a standard normal, by latent element: enough that latents do not drift
apart, little enough that they may say something."""
MAX_MEASURED = 2048
"""Images whose latents give the scaling factor."""


class _Trainee(torch.nn.Module):  # type: ignore[misc] # torch counts as Any here
    """Encodes and decodes in one call, as several workers need it."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, signal: Any, posterior: Any) -> tuple[Any, Any]:
        """Returns the reconstruction and the divergence of each image's latent."""
        latent = self.vae.encode(signal).latent_dist
        decoded = self.vae.decode(latent.mean + latent.std * posterior, return_dict=False)[0]
        # In float32 whatever the model computes in: `exp` of a log-variance overflows early.
        mean, logvar = latent.mean.float(), latent.logvar.float()
        divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar)
        return decoded, divergence.flatten(1).mean(1)


class AutoencoderLearner:
    """What is learned of a batch; see `Learner`.

    Args:
        kind: Of the pipeline, on the CPU; its autoencoder is moved to the device.
        cfg: The configuration.
        device: Where to train.
    """

    def __init__(self, kind: Kind, cfg: dict[str, Any], device: Any) -> None:
        self.latent_shape = kind.latent_shape
        self.module = _Trainee(kind.vae)
        kind.vae.to(device)
        kind.vae.requires_grad_(True)
        kind.vae.train()
        if cfg["model_optim"]["gradient_checkpointing"]:
            enable_checkpointing(kind.vae)
        if cfg["model_optim"]["compile"]:
            kind.vae.encoder.compile()
            kind.vae.decoder.compile()

    def losses(self, module: Any, batch: Batch) -> Any:
        """Returns absolute plus squared error of the pixels, and the weighted divergence."""
        signal = to_signal(batch["examples"])
        decoded, divergence = module(signal, batch["posterior"])
        error = decoded.float() - signal
        distance = error.abs() + error.square()
        return distance.flatten(1).mean(1) + KL_WEIGHT * divergence


def set_scale(kind: Kind, data: Source, batch_size: int, device: Any) -> None:
    """Writes the scale of the latents into the autoencoder's configuration.

    Args:
        kind: Of the pipeline.
        data: Images, as pixels.
        batch_size: Images that are encoded at once.
        device: Where the autoencoder is.
    """
    kind.vae.eval()

    def moments() -> Iterator[Any]:
        count = min(len(data), MAX_MEASURED)
        measured = data.shapes.only([index * len(data) // count for index in range(count)])
        for rows in measured.rows():
            for start in range(0, len(rows), batch_size):
                part = [int(row) * len(data) // count for row in rows[start : start + batch_size]]
                pixels = data.get(part, [CENTER] * len(part))["examples"]
                yield encode_moments(kind.vae, pixels.to(device))

    scale, shift = measure_scale(moments(), shifted=kind.shifts_latents)
    kind.vae.register_to_config(scaling_factor=scale)
    if kind.shifts_latents:
        kind.vae.register_to_config(shift_factor=shift)


class AutoencoderComponent(Component[AutoencoderLearner]):
    """`training.component: vae`."""

    def check(self, cfg: dict[str, Any]) -> None:
        """See `Component`."""
        training = cfg["training"]
        refuse_settings(
            cfg,
            min_snr_gamma=training["min_snr_gamma"] is not None,
            caption_dropout=training["caption_dropout"] > 0,
        )

    def load(self, cfg: dict[str, Any], folder: Path, device: Any) -> Kind:
        """Returns the pipeline, all of it in float32."""
        return create_kind(load_pipeline(folder, torch.float32, ()), cfg["data"])

    def create_learner(self, kind: Kind, cfg: dict[str, Any], device: Any) -> AutoencoderLearner:
        """See `Component`."""
        return AutoencoderLearner(kind, cfg, device)

    def run(
        self,
        job: TrainingJob,
        monitor: Monitor,
        accelerator: Any,
        kind: Kind,
        learner: AutoencoderLearner,
    ) -> bool:
        """Trains on pixels, then measures the scale of the latents."""
        cfg, num_bytes = job.cfg, 3 * kind.resolution**2
        holder = Holder(cfg, accelerator, lambda pixels: pixels, bytes_per_row=num_bytes)
        data, eval_data = holder.open()
        if not Loop(job, monitor, accelerator, learner, data, eval_data).run():
            return False
        if accelerator.is_main_process:
            set_scale(kind, data, cfg["training"]["eval_batch_size"], accelerator.device)
        return True

    def save(
        self, learner: AutoencoderLearner, folder: Path, job: TrainingJob, monitor: Monitor
    ) -> None:
        """Writes the pipeline with its new autoencoder."""
        wanted = job.cfg["model_optim"]["dtype"]
        save_pipeline(folder, {"vae": learner.module.vae}, job.folder, monitor, wanted)


_COMPONENT = AutoencoderComponent()
prepare, train = _COMPONENT.prepare, _COMPONENT.train
