"""A stock Flux pipeline of real, tiny parts."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
)

from deployments.hf_diffusers.tiny_models.text_encoders import WIDTH, create_clip, create_t5
from deployments.hf_diffusers.tiny_models.weights import draw_weights

LATENT_CHANNELS = 4
"""Of the VAE."""

# Halving the size once leaves a denoiser enough to work on in images of 32 to 64 pixels.
VAE_SIZES = {
    "block_out_channels": (8, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "sample_size": 32,
}


def create_flux(seed: int = 0, clip_tokenizer: Any = None) -> DiffusionPipeline:
    """Returns a FluxPipeline with random float32 weights on the CPU; nothing is downloaded.

    Images are 32 to 64 pixels wide. The same seed gives the same weights. Without a
    tokenizer for its CLIP, a token is one byte.
    """
    # Modules draw initial weights before they are given theirs: not from the caller's generator.
    with torch.random.fork_rng(devices=[]):
        tokenizer, text_encoder = create_clip(seed + 1, clip_tokenizer)
        tokenizer_2, text_encoder_2 = create_t5(seed + 6)
        pipeline = FluxPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
            vae=create_vae(seed + 2),
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            text_encoder_2=text_encoder_2,
            tokenizer_2=tokenizer_2,
            transformer=create_flux_transformer(seed + 3),
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def create_vae(seed: int, *, latent_channels: int = LATENT_CHANNELS) -> Any:
    """Returns an AutoencoderKL that halves the size once."""
    vae = AutoencoderKL(
        **VAE_SIZES, latent_channels=latent_channels, scaling_factor=1.0, shift_factor=0.0
    )
    return draw_weights(vae, seed)


def create_flux_transformer(seed: int) -> Any:
    """Returns a FluxTransformer2DModel with an input for the guidance."""
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=4 * LATENT_CHANNELS,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        axes_dims_rope=[4, 4, 8],
        guidance_embeds=True,
    )
    return draw_weights(transformer, seed)
