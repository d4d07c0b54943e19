"""The small default image model: an SDXL pipeline with random weights, the same bytes every time.

Does not know the service. The model has seen no picture: what it draws is texture, with correct
shapes, quickly; it stands in until a trained one is configured.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)

from deployments.hf_diffusers.tiny_models.text_encoders import WIDTH, create_clip
from deployments.hf_diffusers.tiny_models.weights import draw_weights

VERSION = 1
"""Raised whenever the files change, so that an older folder is made anew."""

STAMP = "truthgpt-tiny.json"
"""Written last: a folder without it is incomplete."""


def save_default_image_model(folder: Path, seed: int = 42) -> Path:
    """Writes the model into the folder unless it is there already; returns the folder.

    About 8 MB of float32. Sizes are multiples of 8 pixels, 128x128 by default;
    `DiffusionPipeline.from_pretrained(folder)` loads it.

    Raises:
        FileExistsError: The folder holds something that this function did not make.
        OSError: The folder cannot be written.
    """
    stamp = {"version": VERSION, "kind": "default-image-model", "seed": seed}
    if _read_stamp(folder) == stamp:
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        create_default_pipeline(seed).save_pretrained(work)
        (work / STAMP).write_text(json.dumps(stamp) + "\n", encoding="utf-8")
        work.chmod(0o755)
        _replace(work, folder, stamp)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


def create_default_pipeline(seed: int = 42) -> DiffusionPipeline:
    """Returns the default model itself, not written anywhere."""
    # Modules draw initial weights before they are given theirs: not from the caller's generator.
    with torch.random.fork_rng(devices=[]):
        pipeline = _create(seed)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _create(seed: int) -> DiffusionPipeline:
    tokenizer, text_encoder = create_clip(seed + 1)
    tokenizer_2, text_encoder_2 = create_clip(seed + 2, projection=True)
    return StableDiffusionXLPipeline(
        vae=_create_vae(seed + 3),
        text_encoder=text_encoder,
        text_encoder_2=text_encoder_2,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        unet=_create_unet(seed + 4),
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            steps_offset=1,
            timestep_spacing="leading",
        ),
        add_watermarker=False,
    )


def _create_unet(seed: int) -> Any:
    unet = UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(32, 64, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
        norm_num_groups=8,
        cross_attention_dim=2 * WIDTH,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + WIDTH,
        use_linear_projection=True,
    )
    return draw_weights(unet, seed)


def _create_vae(seed: int) -> Any:
    vae = AutoencoderKL(
        block_out_channels=(8, 16, 16, 32),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=128,
        scaling_factor=1.0,
        # Else SDXL converts a half-precision decoder in place, under the requests that share it.
        force_upcast=False,
    )
    return draw_weights(vae, seed)


def _replace(work: Path, folder: Path, stamp: dict[str, Any]) -> None:
    if folder.exists() and _read_stamp(folder) is None and any(folder.iterdir()):
        raise FileExistsError(
            f"{folder} exists and was not made by this program: name another folder or remove it"
        )
    shutil.rmtree(folder, ignore_errors=True)
    try:
        os.rename(work, folder)
    except OSError:
        # Another process may have put the same model there in the meantime.
        if _read_stamp(folder) != stamp:
            raise


def _read_stamp(folder: Path) -> Any:
    try:
        return json.loads((folder / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: `python -m deployments.hf_diffusers.tiny_models --out FOLDER`."""
    parser = argparse.ArgumentParser(description="Make the small default image model.")
    parser.add_argument("--out", type=Path, default=Path(".models/tiny-image"))
    parser.add_argument("--seed", type=int, default=42)
    options = parser.parse_args(arguments)
    print(f"default image model: {save_default_image_model(options.out, options.seed)}")
