"""A small random chat model that hears, a tiny Qwen2-Audio."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    Qwen2AudioConfig,
    Qwen2AudioEncoderConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    Qwen2Config,
    WhisperFeatureExtractor,
)

from deployments.vllm.tiny_model import make_tiny_llama

TOKENS = ["<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"]
TEMPLATE = (
    "{% for message in messages %}{% if message.content is string %}{{ message.content }}"
    "{% else %}{% for part in message.content %}{% if part.type == 'text' %}{{ part.text }}"
    "{% else %}<|audio_bos|><|AUDIO|><|audio_eos|>{% endif %}{% endfor %}{% endif %}{% endfor %}"
)


def make_tiny_audio(out: Path) -> Path:
    """Writes it; returns its folder. Beside it goes `llama`, whose tokenizer it has."""
    tokenizer: Any = AutoTokenizer.from_pretrained(make_tiny_llama(out.with_name("llama")))
    tokenizer.add_special_tokens({"additional_special_tokens": TOKENS})
    tokenizer.chat_template = TEMPLATE
    text = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=2048,
    )
    audio = Qwen2AudioEncoderConfig(
        d_model=32, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=64
    )
    config = Qwen2AudioConfig(
        audio_config=audio,
        text_config=text,
        audio_token_index=tokenizer.convert_tokens_to_ids(TOKENS[0]),
    )
    torch.manual_seed(0)
    Qwen2AudioForConditionalGeneration(config).save_pretrained(out)
    _rename_weights(out / "model.safetensors")
    features = WhisperFeatureExtractor(feature_size=audio.num_mel_bins)
    Qwen2AudioProcessor(features, tokenizer, chat_template=TEMPLATE).save_pretrained(out)
    return out


def _rename_weights(path: Path) -> None:
    """Gives the weights the names of published models, which vLLM knows."""
    weights = load_file(path)
    new = "language_model.model."
    renamed = {name.replace(f"{new}model.", new): value for name, value in weights.items()}
    save_file(renamed, path, metadata={"format": "pt"})
