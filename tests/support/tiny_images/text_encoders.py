"""Text encoders of a few thousand weights, each with its own kind of tokenizer.

Does not know the pipelines.
"""

from __future__ import annotations

from typing import Any

from transformers import (
    Gemma2Config,
    Gemma2Model,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
)

from deployments.hf_diffusers.tiny_models import text_encoders
from deployments.hf_diffusers.tiny_models.text_encoders import WIDTH
from deployments.hf_diffusers.tiny_models.weights import draw_weights
from tests.support.tiny_images.tokenizers import (
    create_clip_tokenizer,
    create_gemma_tokenizer,
    create_qwen_tokenizer,
)

_DECODER = {
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 4096,
}


def create_clip(seed: int, *, projection: bool = False) -> tuple[Any, Any]:
    """Returns (tokenizer of words, CLIPTextModel); with `projection` it has a pooled output."""
    return text_encoders.create_clip(seed, create_clip_tokenizer(), projection=projection)


def create_gemma(seed: int) -> tuple[Any, Any]:
    """Returns (GemmaTokenizer, Gemma2Model)."""
    tokenizer = create_gemma_tokenizer()
    config = Gemma2Config(vocab_size=len(tokenizer), query_pre_attn_scalar=8, **_DECODER)
    return tokenizer, draw_weights(Gemma2Model(config), seed)


def create_qwen3(seed: int, *, causal_lm: bool = False) -> tuple[Any, Any]:
    """Returns (Qwen2Tokenizer, Qwen3Model), or with `causal_lm` the model with a head."""
    tokenizer = create_qwen_tokenizer()
    config = Qwen3Config(vocab_size=len(tokenizer), **_DECODER)
    model = Qwen3ForCausalLM(config) if causal_lm else Qwen3Model(config)
    return tokenizer, draw_weights(model, seed)


def create_qwen_vl(seed: int) -> tuple[Any, Any]:
    """Returns (Qwen2Tokenizer, Qwen2_5_VLForConditionalGeneration)."""
    tokenizer = create_qwen_tokenizer()
    text = {name: value for name, value in _DECODER.items() if name != "head_dim"}
    tokens = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
    config = Qwen2_5_VLConfig(
        **tokens,
        text_config={
            **text,
            **tokens,
            "vocab_size": len(tokenizer),
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [1, 1, 2],
            },
        },
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_heads": 2,
            "out_hidden_size": WIDTH,
            "fullatt_block_indexes": [0],
        },
    )
    return tokenizer, draw_weights(Qwen2_5_VLForConditionalGeneration(config), seed)


def create_mistral3(seed: int) -> tuple[Any, Any]:
    """Returns (tokenizer with a chat template, Mistral3ForConditionalGeneration)."""
    tokenizer = create_qwen_tokenizer()
    config = Mistral3Config(
        text_config={"model_type": "mistral", "vocab_size": len(tokenizer), **_DECODER},
        vision_config={
            "model_type": "pixtral",
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "head_dim": 8,
            "image_size": 32,
            "patch_size": 16,
        },
    )
    return tokenizer, draw_weights(Mistral3ForConditionalGeneration(config), seed)
