"""Real denoisers, ControlNets and VAEs of a few ten thousand weights, beside those of Flux.

Does not know the pipelines; widths fit the text encoders.
"""

from __future__ import annotations

from typing import Any

from diffusers import (
    AutoencoderDC,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    ControlNetModel,
    Flux2Transformer2DModel,
    PixArtTransformer2DModel,
    QwenImageTransformer2DModel,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    ZImageTransformer2DModel,
)

from deployments.hf_diffusers.tiny_models.flux import LATENT_CHANNELS, VAE_SIZES
from deployments.hf_diffusers.tiny_models.text_encoders import WIDTH
from deployments.hf_diffusers.tiny_models.weights import draw_weights

SD3_LATENT_CHANNELS = 16
"""SD3's pipeline for inpainting takes no other number."""

SANA_HEAD_DIM = 32
"""Sana's linear attention divides by a sum of rectified features. Where all those of a head are 0,
as is common with a few and never happens with many, the output jumps, and so does rounding."""

_UNET = {
    "sample_size": 16,
    "layers_per_block": 1,
    "block_out_channels": (16, 32),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "attention_head_dim": 4,
    "norm_num_groups": 4,
}


def _unet_conditions(xl: bool) -> dict[str, Any]:
    """Returns what SDXL's UNet and ControlNet take in more than SD's: two encoders, six sizes."""
    if not xl:
        return {"cross_attention_dim": WIDTH}
    return {
        "cross_attention_dim": 2 * WIDTH,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + WIDTH,
        "use_linear_projection": True,
    }


def create_unet(seed: int, *, xl: bool = False, in_channels: int = LATENT_CHANNELS) -> Any:
    """Returns a UNet2DConditionModel; `xl`: with SDXL's conditions."""
    unet = UNet2DConditionModel(
        **_UNET,
        **_unet_conditions(xl),
        in_channels=in_channels,
        out_channels=LATENT_CHANNELS,
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    return draw_weights(unet, seed)


def create_controlnet(seed: int, *, xl: bool = False) -> Any:
    """Returns a ControlNetModel that fits `create_unet`, for hint images of the image's size."""
    controlnet = ControlNetModel(
        **{name: value for name, value in _UNET.items() if name != "sample_size"},
        **_unet_conditions(xl),
        in_channels=LATENT_CHANNELS,
        # One stride of two, as the VAE has.
        conditioning_embedding_out_channels=(8, 16),
    )
    return draw_weights(controlnet, seed)


def create_flux2_vae(seed: int) -> Any:
    """Returns an AutoencoderKLFlux2 that halves the size once; its latents are packed 2x2."""
    return draw_weights(AutoencoderKLFlux2(**VAE_SIZES, latent_channels=LATENT_CHANNELS), seed)


def create_qwen_vae(seed: int) -> Any:
    """Returns an AutoencoderKLQwenImage that quarters the size."""
    vae = AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=LATENT_CHANNELS,
        dim_mult=[1, 2, 4],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.0] * LATENT_CHANNELS,
        latents_std=[1.0] * LATENT_CHANNELS,
    )
    return draw_weights(vae, seed)


def create_dc_vae(seed: int) -> Any:
    """Returns an AutoencoderDC that halves the size once."""
    vae = AutoencoderDC(
        in_channels=3,
        latent_channels=LATENT_CHANNELS,
        attention_head_dim=SANA_HEAD_DIM,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(32, 32),
        decoder_block_out_channels=(32, 32),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.5,
    )
    return draw_weights(vae, seed)


def create_sd3_transformer(seed: int) -> Any:
    """Returns an SD3Transformer2DModel."""
    transformer = SD3Transformer2DModel(
        sample_size=32,
        patch_size=2,
        in_channels=SD3_LATENT_CHANNELS,
        out_channels=SD3_LATENT_CHANNELS,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=32,
        pooled_projection_dim=2 * WIDTH,
    )
    return draw_weights(transformer, seed)


def create_flux2_transformer(seed: int, *, guidance: bool, num_text_layers: int) -> Any:
    """Returns a Flux2Transformer2DModel that reads `num_text_layers` layers of its encoder."""
    transformer = Flux2Transformer2DModel(
        in_channels=4 * LATENT_CHANNELS,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=num_text_layers * WIDTH,
        timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=guidance,
    )
    return draw_weights(transformer, seed)


def create_qwen_transformer(seed: int) -> Any:
    """Returns a QwenImageTransformer2DModel."""
    transformer = QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=4 * LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(8, 4, 4),
    )
    return draw_weights(transformer, seed)


def create_z_image_transformer(seed: int) -> Any:
    """Returns a ZImageTransformer2DModel."""
    transformer = ZImageTransformer2DModel(
        all_patch_size=(2,),
        all_f_patch_size=(1,),
        in_channels=LATENT_CHANNELS,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=WIDTH,
        axes_dims=[8, 4, 4],
        axes_lens=[512, 64, 64],
    )
    return draw_weights(transformer, seed)


def create_sana_transformer(seed: int) -> Any:
    """Returns a SanaTransformer2DModel."""
    transformer = SanaTransformer2DModel(
        patch_size=1,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=2,
        num_attention_heads=1,
        attention_head_dim=SANA_HEAD_DIM,
        num_cross_attention_heads=2,
        cross_attention_head_dim=16,
        cross_attention_dim=32,
        caption_channels=WIDTH,
        sample_size=16,  # the pipeline makes 512 pixels of a smaller image, with 32 even 1024
    )
    return draw_weights(transformer, seed)


def create_pixart_transformer(seed: int) -> Any:
    """Returns a PixArtTransformer2DModel that also predicts a variance, as PixArt's own does."""
    transformer = PixArtTransformer2DModel(
        sample_size=16,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=3,
        caption_channels=WIDTH,
        in_channels=LATENT_CHANNELS,
        cross_attention_dim=24,
        out_channels=2 * LATENT_CHANNELS,
        use_additional_conditions=False,
    )
    return draw_weights(transformer, seed)
