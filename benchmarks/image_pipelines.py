"""The pipelines that `images.py` measures: random weights, made here, nothing downloaded."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class PipelineSize:
    """What is measured.

    Attributes:
        small: Width and height of the small images, in pixels.
        large: Of the large ones.
        dtype: Name of the weights' torch type.
    """

    small: int
    large: int
    dtype: str


PIPELINES = {
    "tiny-sdxl": PipelineSize(small=64, large=128, dtype="float32"),
    "sdxl": PipelineSize(small=512, large=1024, dtype="bfloat16"),
}


class BenchmarkPipeline:
    """A stock pipeline with prompts already encoded, so that denoising is what is measured.

    Args:
        pipe: A Stable Diffusion XL pipeline without text encoders.
        size: Its sizes.
        device: Where it lies.
    """

    def __init__(self, pipe: Any, size: PipelineSize, device: str) -> None:
        self.pipe = pipe
        self.small = size.small
        self.large = size.large
        self.device = device
        self.num_forwards = 0
        dtype = getattr(torch, size.dtype)
        generator = torch.Generator().manual_seed(5)
        width = pipe.unet.config.cross_attention_dim
        time_ids = 6 * pipe.unet.config.addition_time_embed_dim
        pooled = pipe.unet.config.projection_class_embeddings_input_dim - time_ids
        self._embeds = {
            name: torch.randn(shape, generator=generator).to(device, dtype)
            for name, shape in (
                ("prompt_embeds", (1, 77, width)),
                ("negative_prompt_embeds", (1, 77, width)),
                ("pooled_prompt_embeds", (1, pooled)),
                ("negative_pooled_prompt_embeds", (1, pooled)),
            )
        }
        pipe.unet.register_forward_pre_hook(self._count)

    def _count(self, *_: Any) -> None:
        self.num_forwards += 1

    def inputs(self, size: int, num_steps: int, seed: int) -> dict[str, Any]:
        """Returns the arguments of the stock pipeline's call for one image."""
        return {
            **self._embeds,
            "height": size,
            "width": size,
            "num_inference_steps": num_steps,
            "guidance_scale": 5.0,
            "generator": torch.Generator(self.device).manual_seed(seed),
            "output_type": "pt",
        }

    @contextmanager
    def slowed(self, step_s: float) -> Iterator[None]:
        """Makes every forward of the denoiser take `step_s` seconds more, asleep."""
        handle = self.pipe.unet.register_forward_pre_hook(lambda *_: time.sleep(step_s))
        try:
            yield
        finally:
            handle.remove()


def load_pipeline(name: str, device: str) -> BenchmarkPipeline:
    """Makes one of `PIPELINES` with seed 0 on a device."""
    size = PIPELINES[name]
    torch.manual_seed(0)
    pipe = _sdxl(tiny=name.startswith("tiny"))
    pipe.to(device, getattr(torch, size.dtype))
    pipe.set_progress_bar_config(disable=True)
    return BenchmarkPipeline(pipe, size, device)


def _sdxl(*, tiny: bool) -> Any:
    """Returns SDXL with its published sizes, or the same with a few small blocks."""
    from diffusers import (
        AutoencoderKL,
        EulerDiscreteScheduler,
        StableDiffusionXLPipeline,
        UNet2DConditionModel,
    )

    widths = (32, 64) if tiny else (320, 640, 1280)
    depth = len(widths)
    blocks = {
        "block_out_channels": widths,
        "layers_per_block": 1 if tiny else 2,
        "transformer_layers_per_block": 1 if tiny else (1, 2, 10),
        "attention_head_dim": 4 if tiny else (5, 10, 20),
        "cross_attention_dim": 64 if tiny else 2048,
        "addition_time_embed_dim": 8 if tiny else 256,
        "projection_class_embeddings_input_dim": 80 if tiny else 2816,
        "norm_num_groups": 8 if tiny else 32,
    }
    unet = UNet2DConditionModel(
        sample_size=128,
        addition_embed_type="text_time",
        use_linear_projection=True,
        down_block_types=("DownBlock2D", *["CrossAttnDownBlock2D"] * (depth - 1)),
        up_block_types=(*["CrossAttnUpBlock2D"] * (depth - 1), "UpBlock2D"),
        **blocks,
    )
    channels = (16, 32, 32, 32) if tiny else (128, 256, 512, 512)
    vae = AutoencoderKL(
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1 if tiny else 2,
        norm_num_groups=8 if tiny else 32,
        latent_channels=4,
        scaling_factor=0.13025,
        force_upcast=False,
    )
    return StableDiffusionXLPipeline(
        vae=vae.eval(),
        text_encoder=None,
        text_encoder_2=None,
        tokenizer=None,
        tokenizer_2=None,
        unet=unet.eval(),
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            steps_offset=1,
            timestep_spacing="leading",
        ),
        add_watermarker=False,
    )
