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
EMBEDDING_STD, BRANCH_STD = 0.1, 0.005
"""Of the tokens' embeddings, and of what the layers add to them, before training."""

TEMPERATURE = 0.5
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
        _begin_with_words(model)
    model.generation_config = GenerationConfig(do_sample=True, temperature=TEMPERATURE, **special)
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


def _begin_with_words(model: LlamaForCausalLM) -> None:
    """Draws some weights anew, so that the tokens stand out from what the layers add to them.

    With Llama's own 0.02 for both, the layers learn to repeat a name only after several times as
    many stories: a token is hardly seen behind what attention adds to it.
    """
    with torch.no_grad():
        model.get_input_embeddings().weight.normal_(0, EMBEDDING_STD)
        for name, weight in model.named_parameters():
            if "o_proj" in name or "down_proj" in name:
                weight.normal_(0, BRANCH_STD)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Make the story model's random beginning.")
    parser.add_argument("--out", type=Path, default=Path("runs/start/story"))
    parser.add_argument("--seed", type=int, default=SEED)
    options = parser.parse_args(arguments)
    print(f"story model, untrained: {save_starting_model(options.out, options.seed)}")


if __name__ == "__main__":
    main()
