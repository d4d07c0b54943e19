"""Stock pipelines of every supported class over tiny parts.

Does not know the engine that runs them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from diffusers import (
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    PixArtSigmaPipeline,
    QwenImagePipeline,
    SanaPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    ZImagePipeline,
)

from deployments.hf_diffusers.tiny_models.flux import create_flux, create_vae
from deployments.hf_diffusers.tiny_models.text_encoders import WIDTH, create_t5
from tests.support.tiny_images import denoisers, text_encoders
from tests.support.tiny_images.controlnets import with_controlnet
from tests.support.tiny_images.tokenizers import create_clip_tokenizer

_SD_NOISE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "timestep_spacing": "leading",
}

CALL_DEFAULTS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        # The language-model encoders read every position, padding too: short prompts keep it quick.
        "sd3": {"max_sequence_length": 48},
        "flux": {"max_sequence_length": 48},
        # The stock defaults name layers that only the full-size encoders have.
        "flux2": {"max_sequence_length": 64, "text_encoder_out_layers": (1, 2)},
        "flux2-klein": {"max_sequence_length": 64, "text_encoder_out_layers": (1, 2)},
        "zimage": {"max_sequence_length": 96},
        # Rounds sizes to those of its full-size training set unless told not to.
        "sana": {
            "max_sequence_length": 48,
            "complex_human_instruction": [],
            "use_resolution_binning": False,
        },
        "pixart": {
            "max_sequence_length": 48,
            "clean_caption": False,
            "use_resolution_binning": False,
        },
    }
)
"""Arguments of the pipeline call that a tiny pipeline needs beside the request's own."""


def create_pipeline(kind: str, seed: int = 0) -> DiffusionPipeline:
    """Returns a stock pipeline of real, tiny parts with random float32 weights, on the CPU.

    Images are 32 to 64 pixels wide. The same kind and seed give the same weights. Nothing is
    downloaded.

    Raises:
        ValueError: `kind` is not one of KINDS.
    """
    create = _CREATORS.get(kind)
    if create is None:
        raise ValueError(f"no tiny pipeline {kind!r}: there are {', '.join(KINDS)}")
    # Modules draw initial weights before they are given theirs: not from the caller's generator.
    with torch.random.fork_rng(devices=[]):
        pipeline = create(seed)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _sd(seed: int) -> DiffusionPipeline:
    tokenizer, text_encoder = text_encoders.create_clip(seed + 1)
    return StableDiffusionPipeline(
        vae=create_vae(seed + 2),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=denoisers.create_unet(seed + 3),
        scheduler=EulerDiscreteScheduler(**_SD_NOISE),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sd_controlnet(seed: int) -> DiffusionPipeline:
    return with_controlnet(_sd(seed))


def _sdxl(seed: int) -> DiffusionPipeline:
    tokenizer, text_encoder = text_encoders.create_clip(seed + 1)
    tokenizer_2, text_encoder_2 = text_encoders.create_clip(seed + 5, projection=True)
    return StableDiffusionXLPipeline(
        vae=create_vae(seed + 2),
        text_encoder=text_encoder,
        text_encoder_2=text_encoder_2,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        unet=denoisers.create_unet(seed + 3, xl=True),
        scheduler=EulerDiscreteScheduler(**_SD_NOISE),
        add_watermarker=False,
    )


def _sdxl_controlnet(seed: int) -> DiffusionPipeline:
    return with_controlnet(_sdxl(seed))


def _sd3(seed: int) -> DiffusionPipeline:
    tokenizer, text_encoder = text_encoders.create_clip(seed + 1, projection=True)
    tokenizer_2, text_encoder_2 = text_encoders.create_clip(seed + 5, projection=True)
    tokenizer_3, text_encoder_3 = create_t5(seed + 6, width=2 * WIDTH)
    return StableDiffusion3Pipeline(
        transformer=denoisers.create_sd3_transformer(seed + 3),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=create_vae(seed + 2, latent_channels=denoisers.SD3_LATENT_CHANNELS),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        text_encoder_2=text_encoder_2,
        tokenizer_2=tokenizer_2,
        text_encoder_3=text_encoder_3,
        tokenizer_3=tokenizer_3,
    )


def _flux2(seed: int) -> DiffusionPipeline:
    tokenizer, text_encoder = text_encoders.create_mistral3(seed + 1)
    pipeline = Flux2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=denoisers.create_flux2_vae(seed + 2),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        transformer=denoisers.create_flux2_transformer(seed + 3, guidance=True, num_text_layers=2),
    )
    # A token is one byte here: the stock system message would leave the prompt no room.
    pipeline.system_message = "Draw."
    return pipeline


def _flux2_klein(seed: int) -> DiffusionPipeline:
    tokenizer, text_encoder = text_encoders.create_qwen3(seed + 1, causal_lm=True)
    return Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=denoisers.create_flux2_vae(seed + 2),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        transformer=denoisers.create_flux2_transformer(seed + 3, guidance=False, num_text_layers=2),
    )


def _qwen(seed: int) -> DiffusionPipeline:
    tokenizer, text_encoder = text_encoders.create_qwen_vl(seed + 1)
    pipeline = QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0, use_dynamic_shifting=True),
        vae=denoisers.create_qwen_vae(seed + 2),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        transformer=denoisers.create_qwen_transformer(seed + 3),
    )
    # A token is one byte here: the stock template would outweigh the prompt.
    pipeline.prompt_template_encode = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    pipeline.prompt_template_encode_start_idx = 6
    return pipeline


def _z_image(seed: int) -> DiffusionPipeline:
    tokenizer, text_encoder = text_encoders.create_qwen3(seed + 1)
    return ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=create_vae(seed + 2),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        transformer=denoisers.create_z_image_transformer(seed + 3),
    )


def _sana(seed: int) -> DiffusionPipeline:
    tokenizer, text_encoder = text_encoders.create_gemma(seed + 1)
    return SanaPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=denoisers.create_dc_vae(seed + 2),
        transformer=denoisers.create_sana_transformer(seed + 3),
        scheduler=DPMSolverMultistepScheduler(
            prediction_type="flow_prediction",
            use_flow_sigmas=True,
            flow_shift=3.0,
            final_sigmas_type="zero",
        ),
    )


def _pixart(seed: int) -> DiffusionPipeline:
    tokenizer, text_encoder = create_t5(seed + 1)
    return PixArtSigmaPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=create_vae(seed + 2),
        transformer=denoisers.create_pixart_transformer(seed + 3),
        scheduler=DPMSolverMultistepScheduler(
            beta_start=0.0001, beta_end=0.02, beta_schedule="linear"
        ),
    )


_CREATORS: Mapping[str, Callable[[int], DiffusionPipeline]] = MappingProxyType(
    {
        "sd": _sd,
        "sd-controlnet": _sd_controlnet,
        "sdxl": _sdxl,
        "sdxl-controlnet": _sdxl_controlnet,
        "sd3": _sd3,
        "flux": lambda seed: create_flux(seed, create_clip_tokenizer()),
        "flux2": _flux2,
        "flux2-klein": _flux2_klein,
        "qwen": _qwen,
        "zimage": _z_image,
        "sana": _sana,
        "pixart": _pixart,
    }
)

KINDS: tuple[str, ...] = tuple(_CREATORS)
"""What `create_pipeline` can make."""
