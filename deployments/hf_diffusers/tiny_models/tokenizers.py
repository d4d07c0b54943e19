"""Real tokenizers over tiny vocabularies, made locally."""

from __future__ import annotations

from typing import Any

from tokenizers import pre_tokenizers
from transformers import CLIPTokenizer, T5Tokenizer

CLIP_LENGTH = 77
"""Tokens that a CLIP text encoder reads, begin and end included."""


def create_clip_tokenizer() -> Any:
    """Returns a CLIPTokenizer of single bytes that pads with its end token, as CLIP's own does."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=CLIP_LENGTH)


def create_t5_tokenizer() -> Any:
    """Returns a T5Tokenizer of single characters."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(chr(code), -3.0) for code in range(ord("!"), ord("~") + 1)]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)
