"""Makes the folder that the image model's training starts from: a small Stable Diffusion pipeline.

Its weights are random. Does not train it. `python -m scripts.shipped.shapes_model`
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from tokenizers import pre_tokenizers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from scripts.shipped.shapes_data import write_example
from scripts.shipped.shapes_draw import COLORS, EDGE, PLACES, SHAPES, SYNONYMS
from scripts.shipped.shapes_transparent import begin_transparent

MAX_TOKENS = 24
"""Tokens of a prompt that the text encoder reads, begin and end included."""

WIDTH = 128
"""Features of a token of the prompt."""

EMBEDDING_STD = 0.5
"""Of the words' embeddings before training."""

LATENT_CHANNELS = 4
VAE_CHANNELS = (8, 16, 32)
"""Of the autoencoder's levels, each of which halves the edge but the last."""

SEED = 42


def create_tokenizer() -> Any:
    """Returns a CLIPTokenizer in which each word of a caption is one token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = _learn_merges()
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet)]
    tokens += [first + second for first, second in merges]
    tokens = list(dict.fromkeys([*tokens, "<|startoftext|>", "<|endoftext|>"]))
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_TOKENS)


def _learn_merges() -> list[tuple[str, str]]:
    """Returns the merges after which each word is one token, the commonest pair first."""
    words = [[*word[:-1], f"{word[-1]}</w>"] for word in _words()]
    merges = []
    while words := [word for word in words if len(word) > 1]:
        counts = Counter(pair for word in words for pair in pairwise(word))
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        words = [_merge(word, best) for word in words]
    return merges


def _merge(word: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for piece in word:
        if merged and (merged[-1], piece) == pair:
            merged[-1] += piece
        else:
            merged.append(piece)
    return merged


def _words() -> list[str]:
    names = " ".join([*COLORS, *SHAPES, *PLACES, *SYNONYMS.values()])
    captions = " ".join(write_example("tokenizer", 0, index)[2] for index in range(2000))
    return sorted(set(f"{names} {captions}".replace(",", " ").split()))


def create_pipeline(seed: int = SEED) -> StableDiffusionPipeline:
    """Returns the pipeline with random weights, the same for the same seed."""
    # Weights are drawn from a generator of their own, not from the caller's.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = create_tokenizer()
        return StableDiffusionPipeline(
            vae=_create_vae(),
            text_encoder=_create_text_encoder(tokenizer),
            tokenizer=tokenizer,
            unet=_create_unet(),
            scheduler=_create_scheduler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )


def _create_vae() -> AutoencoderKL:
    vae = AutoencoderKL(
        block_out_channels=VAE_CHANNELS,
        down_block_types=("DownEncoderBlock2D",) * len(VAE_CHANNELS),
        up_block_types=("UpDecoderBlock2D",) * len(VAE_CHANNELS),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        # With more groups a norm over so few channels would take the colors away.
        norm_num_groups=2,
        sample_size=EDGE,
        force_upcast=False,
    )
    begin_transparent(vae)
    return vae


def _create_text_encoder(tokenizer: Any) -> CLIPTextModel:
    model = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            projection_dim=WIDTH,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    # CLIP's own 0.02 is so little beside what attention adds to it that the words look alike, and a
    # denoiser finds out what they mean only after thousands of steps.
    model.get_input_embeddings().weight.data.normal_(0, EMBEDDING_STD)
    return model


def _create_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=EDGE // 2 ** (len(VAE_CHANNELS) - 1),
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        layers_per_block=1,
        # Down to two by two positions, where each knows which one it is by what is beside it.
        block_out_channels=(32, 64, 128, 128),
        # Attention is dear where there are many positions, and needless where there are few.
        down_block_types=(
            "DownBlock2D",
            "CrossAttnDownBlock2D",
            "CrossAttnDownBlock2D",
            "DownBlock2D",
        ),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        # Diffusers' name for the number of heads.
        attention_head_dim=4,
        norm_num_groups=8,
        cross_attention_dim=WIDTH,
        use_linear_projection=True,
    )


def _create_scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        # The last step of training is noise alone, so that an image can be as light or as dark as
        # asked for (Lin et al. 2024, arXiv:2305.08891).
        rescale_betas_zero_snr=True,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
    )


def save_starting_model(folder: Path, seed: int = SEED) -> Path:
    """Writes the pipeline, in float16 as it ships.

    Raises:
        OSError: The folder cannot be written.
    """
    create_pipeline(seed).to(torch.float16).save_pretrained(folder)
    return folder


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Make the image model's random beginning.")
    parser.add_argument("--out", type=Path, default=Path("runs/start/shapes"))
    parser.add_argument("--seed", type=int, default=SEED)
    options = parser.parse_args(arguments)
    print(f"image model, untrained: {save_starting_model(options.out, options.seed)}")


if __name__ == "__main__":
    main()
