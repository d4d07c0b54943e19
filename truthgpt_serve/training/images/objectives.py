"""What a denoiser learns: how its input is made of latent and noise, and how its output is scored.

Noise levels arrive as uniform numbers in (0, 1), so that a fixed number means the same in every
evaluation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import compute_snr

from truthgpt_serve.training.errors import TrainingError

PREDICTIONS = ("epsilon", "v_prediction")


@dataclass(frozen=True, slots=True)
class Noised:
    """A batch with its noise.

    Attributes:
        latents: Shape (batch, channels, height, width), as the denoiser sees them.
        noise: Of the same shape.
        levels: Shape (batch,).
        noisy: Latents and noise, mixed.
        timesteps: Shape (batch,).
        time_ids: Float32 of shape (batch, 6); see `Loaded.time_ids`.
        captions: Of each example; None where it is dropped.
    """

    latents: Any
    noise: Any
    levels: Any
    noisy: Any
    timesteps: Any
    time_ids: Any
    captions: list[str | None]


class Objective(Protocol):
    """How a denoiser is trained."""

    def mix(self, latents: Any, noise: Any, levels: Any) -> tuple[Any, Any]:
        """Returns the noisy latents and the timesteps that a denoiser is given."""

    def losses(
        self, output: Any, latents: Any, noise: Any, levels: Any, *, weighed: bool = True
    ) -> Any:
        """Returns the loss of each example, shape (batch,), float32.

        Without `weighed` all noise levels count alike, whatever the objective says of them.
        """


class Diffusion:
    """Predicts the noise, or the velocity of Salimans and Ho (2022), at discrete timesteps.

    Args:
        scheduler: The pipeline's; its noise schedule and prediction type are taken over.
        min_snr_gamma: Bound of the weight of a low noise level (Hang et al., 2023), or None.

    Raises:
        TrainingError: The scheduler asks for another prediction, or none of these is weighed.
    """

    def __init__(self, scheduler: Any, min_snr_gamma: float | None) -> None:
        kind = scheduler.config.get("prediction_type", "epsilon")
        if kind not in PREDICTIONS or scheduler.config.get("use_flow_sigmas"):
            raise _unsupported(scheduler, kind)
        self._schedule = DDPMScheduler.from_config(scheduler.config)
        self._kind = kind
        self._gamma = min_snr_gamma

    def mix(self, latents: Any, noise: Any, levels: Any) -> tuple[Any, Any]:
        """Returns the noisy latents and integer timesteps."""
        timesteps = self._timesteps(levels)
        return self._schedule.add_noise(latents, noise, timesteps), timesteps

    def losses(
        self, output: Any, latents: Any, noise: Any, levels: Any, *, weighed: bool = True
    ) -> Any:
        """Returns the mean squared error of each example, weighed by min-SNR if asked for."""
        timesteps = self._timesteps(levels)
        target = noise
        if self._kind == "v_prediction":
            target = self._schedule.get_velocity(latents, noise, timesteps)
        losses = _squared_error(output, target)
        if self._gamma is None or not weighed:
            return losses
        snr = compute_snr(self._schedule, timesteps)
        bound = snr.clamp(max=self._gamma)
        divisor = snr + 1 if self._kind == "v_prediction" else snr
        # At a signal of zero the noise is the whole input: the limit of the weight is 1.
        return losses * torch.where(divisor > 0, bound / divisor.clamp(min=1e-12), 1.0)

    def _timesteps(self, levels: Any) -> Any:
        count = self._schedule.config.num_train_timesteps
        return (levels * count).long().clamp(max=count - 1)


class RectifiedFlow:
    """Predicts the straight way from latent to noise, at levels drawn logit-normally.

    As in Esser et al. (2024); the levels are shifted as the scheduler shifts them when it samples.

    Args:
        scheduler: The pipeline's.
        shift_of_size: Log of the shift for latents of the trained size, where the scheduler shifts
            by size (`use_dynamic_shifting`).

    Raises:
        TrainingError: The scheduler is none of flow matching.
    """

    def __init__(self, scheduler: Any, shift_of_size: float = 0.0) -> None:
        if not isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
            raise _unsupported(scheduler, scheduler.config.get("prediction_type", "epsilon"))
        dynamic = scheduler.config.use_dynamic_shifting
        self._shift = math.exp(shift_of_size) if dynamic else scheduler.config.shift
        self._num_timesteps = scheduler.config.num_train_timesteps

    def mix(self, latents: Any, noise: Any, levels: Any) -> tuple[Any, Any]:
        """Returns the noisy latents, and timesteps as real numbers up to `num_train_timesteps`."""
        sigmas = self._sigmas(levels)
        wide = sigmas.view(-1, *[1] * (latents.ndim - 1))
        return (1 - wide) * latents + wide * noise, sigmas * self._num_timesteps

    def losses(
        self, output: Any, latents: Any, noise: Any, levels: Any, *, weighed: bool = True
    ) -> Any:
        """Returns the mean squared error of each example."""
        return _squared_error(output, noise - latents)

    def _sigmas(self, levels: Any) -> Any:
        drawn = torch.sigmoid(torch.special.ndtri(levels))
        return self._shift * drawn / (1 + (self._shift - 1) * drawn)


def _squared_error(output: Any, target: Any) -> Any:
    return (output.float() - target.float()).square().flatten(1).mean(1)


def _unsupported(scheduler: Any, kind: str) -> TrainingError:
    name = type(scheduler).__name__
    message = f"model.name_or_path: {name} with prediction type {kind!r} cannot be trained"
    known = f"{', '.join(PREDICTIONS)} can, and flow matching with SD3 and FLUX.1"
    return TrainingError(f"{message} ({known})")
