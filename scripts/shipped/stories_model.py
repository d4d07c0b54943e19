"""Makes the folder that the story model's training starts from: a Llama with random weights.

Does not train it. `python -m scripts.shipped.stories_model --out runs/start/story`
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from scripts.shipped.stories_tokenizer import (
    BOS,
    EOS,
    MAX_POSITIONS,
    PAD,
    VOCABULARY,
    save_tokenizer,
)

HIDDEN = 192
HEAD_DIM = 32
"""One that vLLM's attention on a CPU has."""

LAYERS = 5
INTERMEDIATE = 512
TEMPERATURE = 0.8
"""Of requests that name none, and of the check."""

SEED = 42


def save_starting_model(folder: Path, seed: int = SEED) -> Path:
    """Writes model, tokenizer and chat template, the same bytes for the same seed.

    Raises:
        OSError: The folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ids = save_tokenizer(folder)
    special = {"bos_token_id": ids[BOS], "eos_token_id": ids[EOS], "pad_token_id": ids[PAD]}
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=LAYERS,
        num_attention_heads=HIDDEN // HEAD_DIM,
        num_key_value_heads=HIDDEN // HEAD_DIM,
        head_dim=HEAD_DIM,
        max_position_embeddings=MAX_POSITIONS,
        # An embedding of its own for the output would be a sixth of the file more.
        tie_word_embeddings=True,
        rms_norm_eps=1e-5,
        **special,
    )
    # Weights are drawn from a generator of their own, not from the caller's.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(do_sample=True, temperature=TEMPERATURE, **special)
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Make the story model's random beginning.")
    parser.add_argument("--out", type=Path, default=Path("runs/start/story"))
    parser.add_argument("--seed", type=int, default=SEED)
    options = parser.parse_args(arguments)
    print(f"story model, untrained: {save_starting_model(options.out, options.seed)}")


if __name__ == "__main__":
    main()
