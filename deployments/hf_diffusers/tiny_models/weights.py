"""Draws a module's weights from a seed, so that the same seed gives the same model everywhere."""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import nn

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def draw_weights(module: AnyModule, seed: int, gain: float = 0.6) -> AnyModule:
    """Draws every parameter anew, in evaluation mode; returns the module.

    Matrices and kernels are normal with a variance of gain^2 / fan-in (0.6 is torch's own default;
    far above it, a random network makes rounding errors grow); scales of norms are near 1, biases
    near 0. None is left at zero: ControlNet's output layers and the residual gates of transformers
    start there, and would hide what flows through.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim >= 2:
                fan_in = parameter[0].numel()
                parameter.copy_(noise * (gain / math.sqrt(fan_in)))
            elif name.endswith("weight"):
                parameter.copy_(1 + 0.1 * noise)
            else:
                parameter.copy_(0.05 * noise)
    module.eval()
    module.requires_grad_(False)
    return module
