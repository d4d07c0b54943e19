"""Trains the denoiser of a latent diffusion pipeline, or a LoRA adapter for it.

The latents come from the pipeline's own autoencoder, which stays as it is.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.training_utils import cast_training_params
from peft import LoraConfig, get_peft_model_state_dict

from truthgpt_serve.training.errors import TrainingError
from truthgpt_serve.training.images.captions import Captioner
from truthgpt_serve.training.images.data.rows import Batch
from truthgpt_serve.training.images.facts import read_facts
from truthgpt_serve.training.images.kinds import Kind
from truthgpt_serve.training.images.latent_training import (
    Noised,
    add_noise,
    enable_checkpointing,
    load_kind,
    move_parts,
    run_on_latents,
    score,
)
from truthgpt_serve.training.images.pipelines import (
    choose_dtype,
    find_pipeline,
    save_adapter,
    save_pipeline,
)
from truthgpt_serve.training.images.prior import make_prior
from truthgpt_serve.training.images.workers import open_accelerator
from truthgpt_serve.training.job import Monitor, TrainingJob
from truthgpt_serve.training.memory.lora import lora_arguments
from truthgpt_serve.training.plan import Facts

ADAPTER = "default"
"""peft's name of the adapter that is trained."""


def prepare(job: TrainingJob) -> Facts:
    """Returns what the plan says of the run; reads rows but no images, configs but no weights.

    Raises:
        TrainingError: The configuration does not fit the pipeline, or the data cannot be read.
    """
    check(job.cfg)
    return read_facts(job.cfg, find_pipeline(job.cfg), job.folder)


def check(cfg: dict[str, Any]) -> None:
    """Checks what a schema cannot see.

    Raises:
        TrainingError: Two settings contradict each other.
    """
    if cfg["model_optim"]["lora"]["enabled"] and cfg["training"]["train_text_encoder"]:
        message = "training.train_text_encoder: an adapter is trained for the denoiser only"
        raise TrainingError(f"{message} (remove it, or set model_optim.lora.enabled: false)")
    if cfg["model"]["adapter"]:
        fix = "remove it, or make one model of both first: truthgpt merge"
        raise TrainingError(f"model.adapter: image adapters are not trained further ({fix})")
    if cfg["model_optim"]["quantization"] is not None:
        message = "model_optim.quantization: image models are trained in full precision"
        raise TrainingError(f"{message} (remove it for training)")
    if cfg["model_optim"]["lora"]["modules_to_save"]:
        message = "model_optim.lora.modules_to_save: Diffusers' adapters have no whole modules"
        raise TrainingError(f"{message} (remove it)")


def train(job: TrainingJob, monitor: Monitor) -> None:
    """Trains, and writes the result to the run's `model/` unless it was asked to stop.

    Raises:
        TrainingError: The configuration does not fit the pipeline, the data cannot be used, the
            loss is no number, or the disk is full.
    """
    cfg = job.cfg
    check(cfg)
    folder = find_pipeline(cfg)
    train_encoders = cfg["training"]["train_text_encoder"]
    accelerator = open_accelerator(cfg, find_unused=train_encoders)
    if not make_prior(cfg, folder, job.folder, accelerator, monitor):
        return
    trained: tuple[str, ...] = ()
    if not cfg["model_optim"]["lora"]["enabled"]:
        trained = ("unet", "transformer")
    if train_encoders:
        trained = (*trained, "text_encoder", "text_encoder_2")
    kind = load_kind(cfg, folder, trained, accelerator.device)
    task = DenoiserTask(kind, cfg, accelerator.device)
    if not run_on_latents(job, monitor, accelerator, kind, task):
        return
    if accelerator.is_main_process:
        wanted = cfg["model_optim"]["dtype"]
        if cfg["model_optim"]["lora"]["enabled"]:
            denoiser, dtype = kind.denoiser, choose_dtype(wanted, folder, kind.denoiser_name)
            weights = get_peft_model_state_dict(denoiser, adapter_name=ADAPTER)
            weights = {name: one.to("cpu", dtype) for name, one in weights.items()}
            settings = denoiser.peft_config[ADAPTER]
            save_adapter(kind.pipeline, kind.denoiser_name, weights, settings, job.folder, monitor)
        else:
            save_pipeline(folder, task.trained_parts, job.folder, monitor, wanted)
    accelerator.wait_for_everyone()


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
        given = (noised.noisy, noised.timesteps, conditions, noised.places)
        return self._kind.predict(self._kind.denoiser, *given)


class DenoiserTask:
    """What is learned of a batch; see `TrainingTask`.

    Args:
        kind: Of the pipeline, on the CPU; its parts are moved to the device.
        cfg: The configuration.
        device: Where to train.
    """

    def __init__(self, kind: Kind, cfg: dict[str, Any], device: Any) -> None:
        training, optim = cfg["training"], cfg["model_optim"]
        self._kind = kind
        self._objective = kind.objective(training["min_snr_gamma"])
        self._prior_weight = training["prior"]["weight"] if training["prior"] else 0.0
        self.latent_shape = kind.latent_shape
        move_parts(kind, device)
        self.trained_parts = {kind.denoiser_name: kind.denoiser}
        if optim["lora"]["enabled"]:
            add_adapter(kind, optim["lora"])
        else:
            kind.denoiser.requires_grad_(True)
        if training["train_text_encoder"]:
            for name in kind.trained_encoder_names:
                part = getattr(kind.pipeline, name)
                part.requires_grad_(True)
                self.trained_parts[name] = part
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
        """Returns the loss of each example; see `TrainingTask`."""
        noised = add_noise(self._kind, self._objective, batch)
        told = None if len(self.trained_parts) > 1 else self._captioner(noised.captions)
        output = module(noised, told)
        count = len(batch["captions"])
        return score(self._objective, output, noised, count, self._prior_weight)


def add_adapter(kind: Kind, lora: dict[str, Any]) -> None:
    """Adds a LoRA adapter, whose weights alone are trained, in float32.

    Raises:
        TrainingError: The denoiser has no layers of the names that are asked for.
    """
    layers = lora["target_modules"] or kind.lora_layers
    settings = LoraConfig(**lora_arguments(lora), target_modules=list(layers))
    try:
        kind.denoiser.add_adapter(settings, adapter_name=ADAPTER)
    except ValueError as error:
        message = f"model_optim.lora.target_modules: {error}"
        raise TrainingError(f"{message} (usual are {', '.join(kind.lora_layers)})") from error
    cast_training_params(kind.denoiser, dtype=torch.float32)
