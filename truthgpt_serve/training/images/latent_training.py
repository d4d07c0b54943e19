"""What all training on noisy latents shares: how a batch is noised, and how a run goes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from truthgpt_serve.training.generation.images import ImageSampler
from truthgpt_serve.training.images.data.rows import Batch
from truthgpt_serve.training.images.data.sources import Holder
from truthgpt_serve.training.images.kinds.base import Kind
from truthgpt_serve.training.images.kinds.find import create_kind
from truthgpt_serve.training.images.latents import draw_latents, encode_moments
from truthgpt_serve.training.images.loading import load_frozen
from truthgpt_serve.training.images.loop import Learner, Loop
from truthgpt_serve.training.images.objectives import Noised, Objective
from truthgpt_serve.training.images.prior import load_prior
from truthgpt_serve.training.job import Monitor, TrainingJob


def load_kind(cfg: Mapping[str, Any], folder: Any, trained: tuple[str, ...], device: Any) -> Kind:
    """Returns the pipeline of a folder, on the CPU, in the number formats of training.

    The adapters of `model.adapter` that stay are in its weights.

    Args:
        cfg: The configuration.
        folder: Of the pipeline.
        trained: Names of the parts whose own weights are trained.
        device: Where it is going to be trained.

    Raises:
        TrainingError: It cannot be loaded, or not be trained.
    """
    # The autoencoder overflows in fp16, and runs only once.
    pipeline = load_frozen(cfg, folder, ("vae", *trained), device)
    return create_kind(pipeline, cfg["data"])


def move_parts(kind: Kind, device: Any) -> None:
    """Moves all modules that training on latents runs to the device."""
    for name in (*kind.encoder_names, "vae", kind.denoiser_name):
        part = getattr(kind.pipeline, name, None)
        if part is not None:
            part.to(device)


def add_noise(kind: Kind, objective: Objective, batch: Batch) -> Noised:
    """Returns a batch, and behind it its images of the class, with the noise that was drawn."""
    parts = [batch, *([batch["prior"]] if "prior" in batch else [])]
    latents = torch.cat([_latents(kind, part) for part in parts])
    noise, levels, time_ids = (
        torch.cat([part[name] for part in parts]) for name in ("noise", "levels", "time_ids")
    )
    noisy, timesteps = objective.mix(latents, noise, levels)
    captions = [caption for part in parts for caption in part["captions"]]
    return Noised(latents, noise, levels, noisy, timesteps, time_ids, captions)


def _latents(kind: Kind, batch: Batch) -> Any:
    moments = batch["examples"]
    if moments.dtype == torch.uint8:
        moments = encode_moments(kind.vae, moments)
    return kind.normalize(draw_latents(moments, batch["posterior"]))


def score(
    objective: Objective, output: Any, noised: Noised, num_examples: int, prior_weight: float
) -> Any:
    """Returns the loss of each example, shape (examples,).

    With images of the class behind the examples, each example's has one of theirs added, so that
    the mean is as in the examples of Diffusers: the mean of the examples' losses, and
    `prior_weight` times the mean of the others'. These count all noise levels alike.

    Args:
        objective: What is learned.
        output: Of the denoiser.
        noised: What it was given.
        num_examples: How many of the batch are examples.
        prior_weight: Of the images of the class.
    """
    given = (output, noised.latents, noised.noise, noised.levels)
    examples = objective.losses(*(one[:num_examples] for one in given))
    if len(output) == num_examples:
        return examples
    prior = objective.losses(*(one[num_examples:] for one in given), weighed=False)
    return examples + prior_weight * prior


def run_on_latents(
    job: TrainingJob, monitor: Monitor, accelerator: Any, kind: Kind, learner: Learner
) -> bool:
    """Reads the data and trains; returns whether the run is at its end.

    Raises:
        TrainingError: The data cannot be used, the loss is no number, or the disk is full.
    """
    holder = Holder(
        job.cfg,
        accelerator,
        lambda pixels: encode_moments(kind.vae, pixels),
        bytes_per_row=2 * math.prod(kind.image_shape()) * 4,
    )
    data, eval_data = holder.open()
    prior = None
    if job.cfg["training"]["prior"] is not None:
        sizes = data.shapes.sizes
        # Beside batches of several sizes each image of the class is cut to all of them.
        images = load_prior(job.cfg, job.folder, sizes[0])
        prior = holder.hold(images, augmented=True, fits=len(sizes) == 1)
    if holder.cached_all:
        kind.vae.to("cpu")
    sample = None
    if job.cfg["training"]["samples"] is not None:
        sample = ImageSampler(job, monitor, accelerator, kind.pipeline)
    return Loop(job, monitor, accelerator, learner, data, eval_data, prior, sample).run()


def enable_checkpointing(part: Any) -> None:
    """Makes a module compute its activations again in the backward pass, if it can."""
    if hasattr(part, "enable_gradient_checkpointing"):
        part.enable_gradient_checkpointing()
    else:
        part.gradient_checkpointing_enable({"use_reentrant": False})
