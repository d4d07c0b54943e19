"""Encodes images into the latents of an autoencoder, and decodes them to measure the error."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch


def to_signal(pixels: Any) -> Any:
    """Returns uint8 pixels as float32 in [-1, 1], which is what autoencoders take."""
    return pixels.float() / 127.5 - 1


def encode_moments(vae: Any, pixels: Any) -> Any:
    """Returns mean and standard deviation of each image's latent, stacked as channels.

    Args:
        vae: An AutoencoderKL in float32.
        pixels: uint8, shape (batch, 3, edge, edge).
    """
    with torch.no_grad():
        distribution = vae.encode(to_signal(pixels)).latent_dist
    return torch.cat([distribution.mean, distribution.std], dim=1)


def draw_latents(moments: Any, posterior: Any) -> Any:
    """Returns latents drawn from the distributions that `encode_moments` returned."""
    mean, std = moments.chunk(2, dim=1)
    return mean + std * posterior


def measure_scale(batches: Iterable[Any], *, shifted: bool) -> tuple[float, float]:
    """Returns the `scaling_factor` and `shift_factor` that bring latents to unit variance.

    Args:
        batches: Of moments.
        shifted: Whether the pipeline subtracts a shift; without one the scale is by the root mean
            square, so that the energy of latent and noise is equal.
    """
    count, first, second = 0, 0.0, 0.0
    for moments in batches:
        mean, std = moments.double().chunk(2, dim=1)
        count += mean.numel()
        first += float(mean.sum())
        second += float((mean.square() + std.square()).sum())
    shift = first / count if shifted else 0.0
    variance = second / count - shift**2
    return 1 / math.sqrt(max(variance, 1e-12)), shift
