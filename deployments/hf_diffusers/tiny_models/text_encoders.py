"""Real text encoders of a few thousand weights, each with its own kind of tokenizer."""

from __future__ import annotations

from typing import Any

from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
)

from deployments.hf_diffusers.tiny_models.tokenizers import (
    CLIP_LENGTH,
    create_clip_tokenizer,
    create_t5_tokenizer,
)
from deployments.hf_diffusers.tiny_models.weights import draw_weights

WIDTH = 32
"""Features of a token, in every encoder here."""


def create_clip(seed: int, tokenizer: Any = None, *, projection: bool = False) -> tuple[Any, Any]:
    """Returns (tokenizer, CLIPTextModel), or with `projection` the model with a pooled output."""
    tokenizer = tokenizer or create_clip_tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        projection_dim=WIDTH,
        max_position_embeddings=CLIP_LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = CLIPTextModelWithProjection(config) if projection else CLIPTextModel(config)
    return tokenizer, draw_weights(model, seed)


def create_t5(seed: int, *, width: int = WIDTH) -> tuple[Any, Any]:
    """Returns (T5Tokenizer, T5EncoderModel) with `width` features of a token."""
    tokenizer = create_t5_tokenizer()
    config = T5Config(
        vocab_size=len(tokenizer), d_model=width, d_kv=8, d_ff=64, num_layers=2, num_heads=4
    )
    return tokenizer, draw_weights(T5EncoderModel(config), seed)
