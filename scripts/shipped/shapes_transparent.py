"""Gives an untrained autoencoder weights with which it lets a small blurred image through.

From the usual random weights it learns for thousands of steps before any color comes through: its
latents begin as noise.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

LOG_VARIANCE = -5.0
"""Of the latents before training: little noise."""

_NEW = 0.1
"""How much is left of the random weights that the image passes through."""


def begin_transparent(vae: Any) -> None:
    """Changes the weights of an AutoencoderKL in place.

    Residual branches begin at zero (as in Goyal et al. 2017, arXiv:1706.02677, section 5.1); red,
    green and blue pass through the convolutions between them, averaged where the edge is halved.
    """
    with torch.no_grad():
        channels = vae.config.latent_channels
        vae.quant_conv.bias[channels:] = LOG_VARIANCE
        vae.quant_conv.weight[channels:] *= _NEW
        for name, module in vae.named_modules():
            if isinstance(module, ResnetBlock2D):
                _clear(module.conv2)
            elif isinstance(module, Attention):
                _clear(module.to_out[0])
            elif isinstance(module, nn.Conv2d) and _is_on_the_way(name):
                _let_through(module)


def _is_on_the_way(name: str) -> bool:
    """Tells whether a convolution is part of no residual branch."""
    parts = ("samplers", "conv_shortcut", "conv_in", "quant_conv")
    return any(part in name for part in parts) or name.endswith("coder.conv_out")


def _clear(module: Any) -> None:
    module.weight.zero_()
    module.bias.zero_()


def _let_through(convolution: Any) -> None:
    """Lets the first three channels through, beside a little of the random weights."""
    weight = convolution.weight
    count = min(3, weight.shape[0], weight.shape[1])
    weight[:count] *= _NEW
    for channel in range(count):
        if weight.shape[-1] == 1:
            weight[channel, channel] += 1
        elif convolution.stride[0] == 2:
            weight[channel, channel, :2, :2] += 0.25
        else:
            weight[channel, channel, 1, 1] += 1
