"""Trains the denoiser of a latent diffusion pipeline, or a LoRA adapter for it.

The latents come from the pipeline's own autoencoder, which stays as it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from truthgpt_serve.training.errors import TrainingError
from truthgpt_serve.training.images.adapters import (
    ADAPTER,
    adapter_weights,
    add_trained,
    trained_names,
)
from truthgpt_serve.training.images.captions import Captioner
from truthgpt_serve.training.images.component import Component
from truthgpt_serve.training.images.data.rows import Batch
from truthgpt_serve.training.images.kinds.base import Kind
from truthgpt_serve.training.images.kinds.find import kind_of
from truthgpt_serve.training.images.latent_training import (
    add_noise,
    enable_checkpointing,
    load_kind,
    move_parts,
    score,
)
from truthgpt_serve.training.images.loading import check_quantization
from truthgpt_serve.training.images.objectives import Noised
from truthgpt_serve.training.images.pipelines import choose_dtype, save_adapter, save_pipeline
from truthgpt_serve.training.images.prior import make_prior
from truthgpt_serve.training.job import Monitor, TrainingJob


class _Trainee(torch.nn.Module):  # type: ignore[misc] # torch counts as Any here
    """The denoiser, and the text encoders if they are trained: one module for all of them."""

    def __init__(self, kind: Kind, parts: dict[str, Any], captioner: Captioner | None) -> None:
        super().__init__()
        self._kind = kind
        self._captioner = captioner
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, noised: Noised, told: Any) -> Any:
        """Returns the denoiser's output; `told` is None where captions are encoded here."""
        conditions = self._captioner(noised.captions) if self._captioner is not None else told
        return self._kind.predict(self._kind.denoiser, noised, conditions)


class DenoiserLearner:
    """What is learned of a batch; see `Learner`.

    Args:
        kind: Of the pipeline, on the CPU; its parts are moved to the device.
        cfg: The configuration.
        device: Where to train.

    Attributes:
        kind: Of the pipeline.
        trained_parts: Modules whose weights, or the adapter in them, are trained, by name.
    """

    def __init__(self, kind: Kind, cfg: dict[str, Any], device: Any) -> None:
        training, optim = cfg["training"], cfg["model_optim"]
        self.kind = kind
        self._objective = kind.objective(training["min_snr_gamma"])
        self._prior_weight = training["prior"]["weight"] if training["prior"] else 0.0
        self.latent_shape = kind.latent_shape
        if optim["lora"]["enabled"]:
            self.trained_parts = add_trained(kind, cfg)
        else:
            names = trained_names(type(kind), cfg)
            self.trained_parts = {name: getattr(kind.pipeline, name) for name in names}
            for part in self.trained_parts.values():
                part.requires_grad_(True)
        move_parts(kind, device)
        for part in self.trained_parts.values():
            part.train()
            if optim["gradient_checkpointing"]:
                enable_checkpointing(part)
        if optim["compile"]:
            # In place: the names of the weights stay what they are.
            kind.denoiser.compile()
        encodes = training["train_text_encoder"]
        self._captioner = Captioner(kind, device, remember=not encodes)
        self.module = _Trainee(kind, self.trained_parts, self._captioner if encodes else None)

    def losses(self, module: Any, batch: Batch) -> Any:
        """Returns the loss of each example; see `Learner`."""
        noised = add_noise(self.kind, self._objective, batch)
        told = None if len(self.trained_parts) > 1 else self._captioner(noised.captions)
        output = module(noised, told)
        count = len(batch["captions"])
        return score(self._objective, output, noised, count, self._prior_weight)


class DenoiserComponent(Component[DenoiserLearner]):
    """`training.component: denoiser`."""

    def check(self, cfg: dict[str, Any]) -> None:
        """See `Component`."""
        hardware = cfg["hardware"]
        check_quantization(cfg, on_cpu=hardware["device"] == "cpu" or hardware["gpus"] == 0)
        if cfg["model_optim"]["lora"]["modules_to_save"]:
            message = "model_optim.lora.modules_to_save: Diffusers' adapters have no whole modules"
            raise TrainingError(f"{message} (remove it)")

    def may_leave_out(self, cfg: dict[str, Any]) -> bool:
        """The last layers of a text encoder are not read by all pipelines."""
        return bool(cfg["training"]["train_text_encoder"])

    def begin(self, job: TrainingJob, folder: Path, accelerator: Any, monitor: Monitor) -> bool:
        """Makes the images of the class that are missing."""
        return make_prior(job.cfg, folder, job.folder, accelerator, monitor)

    def load(self, cfg: dict[str, Any], folder: Path, device: Any) -> Kind:
        """Returns the pipeline, with the adapters that stay in its weights."""
        trained: tuple[str, ...] = ()
        if not cfg["model_optim"]["lora"]["enabled"]:
            trained = trained_names(kind_of(folder)[0], cfg)
        return load_kind(cfg, folder, trained, device)

    def create_learner(self, kind: Kind, cfg: dict[str, Any], device: Any) -> DenoiserLearner:
        """See `Component`."""
        return DenoiserLearner(kind, cfg, device)

    def save(
        self, learner: DenoiserLearner, folder: Path, job: TrainingJob, monitor: Monitor
    ) -> None:
        """Writes the adapter, or the whole pipeline."""
        wanted = job.cfg["model_optim"]["dtype"]
        if not job.cfg["model_optim"]["lora"]["enabled"]:
            save_pipeline(folder, learner.trained_parts, job.folder, monitor, wanted)
            return
        weights, settings = {}, {}
        for name, part in learner.trained_parts.items():
            dtype = choose_dtype(wanted, folder, name)
            trained = adapter_weights(part)
            weights[name] = {key: one.to("cpu", dtype) for key, one in trained.items()}
            settings[name] = part.peft_config[ADAPTER]
        save_adapter(learner.kind.pipeline, weights, settings, job.folder, monitor)


_COMPONENT = DenoiserComponent()
prepare, train = _COMPONENT.prepare, _COMPONENT.train
