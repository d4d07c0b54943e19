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
from truthgpt_serve.training.images.data.samples import Batch
from truthgpt_serve.training.images.data.sources import open_sources
from truthgpt_serve.training.images.facts import read_facts
from truthgpt_serve.training.images.kinds import Kind, create_kind
from truthgpt_serve.training.images.latents import draw_latents, encode_moments
from truthgpt_serve.training.images.loop import Loop
from truthgpt_serve.training.images.pipelines import (
    PRECISIONS,
    choose_dtype,
    find_pipeline,
    load_pipeline,
    save_adapter,
    save_pipeline,
)
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
    return read_facts(job.cfg, find_pipeline(job.cfg))


def check(cfg: dict[str, Any]) -> None:
    """Checks what a schema cannot see.

    Raises:
        TrainingError: Two settings contradict each other.
    """
    if cfg["model_optim"]["lora"]["enabled"] and cfg["training"]["train_text_encoder"]:
        message = "training.train_text_encoder: an adapter is trained for the denoiser only"
        raise TrainingError(f"{message} (remove it, or set model_optim.lora.enabled: false)")
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
    kind = _load_kind(cfg, folder, on_gpu=accelerator.device.type == "cuda")
    task = DenoiserTask(kind, cfg, accelerator.device)
    channels, height, width = kind.latent_shape
    data, eval_data, cached = open_sources(
        cfg,
        accelerator,
        lambda pixels: encode_moments(kind.vae, pixels),
        bytes_per_row=2 * channels * height * width * 4,
    )
    if cached:
        kind.vae.to("cpu")
    if not Loop(job, monitor, accelerator, task, data, eval_data).run():
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


def _load_kind(cfg: dict[str, Any], folder: Any, *, on_gpu: bool) -> Kind:
    precision = PRECISIONS[cfg["training"]["mixed_precision"]]
    # What is not trained needs no more than the format that it is computed in; a CPU computes
    # slowly in the short ones. The autoencoder overflows in fp16, and runs only once.
    frozen = precision if on_gpu else torch.float32
    exact: tuple[str, ...] = ("vae",)
    if not cfg["model_optim"]["lora"]["enabled"]:
        exact = (*exact, "unet", "transformer")
    if cfg["training"]["train_text_encoder"]:
        exact = (*exact, "text_encoder", "text_encoder_2")
    pipeline = load_pipeline(folder, frozen, exact)
    return create_kind(pipeline, cfg["data"]["resolution"])


class _Trainee(torch.nn.Module):  # type: ignore[misc] # torch counts as Any here
    """The denoiser, and the text encoders if they are trained: one module for all of them."""

    def __init__(self, kind: Kind, parts: dict[str, Any], captioner: Captioner | None) -> None:
        super().__init__()
        self._kind = kind
        self._captioner = captioner
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, noisy: Any, timesteps: Any, captions: list[str | None], told: Any) -> Any:
        """Returns the denoiser's output; `told` is None where captions are encoded here."""
        conditions = self._captioner(captions) if self._captioner is not None else told
        return self._kind.predict(self._kind.denoiser, noisy, timesteps, conditions)


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
        self.latent_shape: tuple[int, ...] = kind.latent_shape
        for name in (*kind.encoder_names, "vae", kind.denoiser_name):
            part = getattr(kind.pipeline, name, None)
            if part is not None:
                part.to(device)
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
        moments = batch["examples"]
        if moments.dtype == torch.uint8:
            moments = encode_moments(self._kind.vae, moments)
        latents = self._kind.normalize(draw_latents(moments, batch["posterior"]))
        noise, levels = batch["noise"], batch["levels"]
        noisy, timesteps = self._objective.mix(latents, noise, levels)
        told = None if len(self.trained_parts) > 1 else self._captioner(batch["captions"])
        output = module(noisy, timesteps, batch["captions"], told)
        return self._objective.losses(output, latents, noise, levels)


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


def enable_checkpointing(part: Any) -> None:
    """Makes a module compute its activations again in the backward pass, if it can."""
    if hasattr(part, "enable_gradient_checkpointing"):
        part.enable_gradient_checkpointing()
    else:
        part.gradient_checkpointing_enable({"use_reentrant": False})
