"""Real tokenizers over tiny vocabularies, made locally."""

from __future__ import annotations

import json
from collections import Counter
from functools import lru_cache
from importlib.resources import files
from itertools import pairwise
from typing import Any

from tokenizers import pre_tokenizers
from transformers import CLIPTokenizer, T5Tokenizer

CLIP_LENGTH = 77
"""Tokens that a CLIP text encoder reads, begin and end included."""


def create_clip_tokenizer() -> Any:
    """Returns a CLIPTokenizer that pads with its end token, as CLIP's own does.

    The words of words.json are one token each, and other English words a few.
    """
    vocabulary, merges = _clip_model()
    return CLIPTokenizer(vocab=dict(vocabulary), merges=list(merges), model_max_length=CLIP_LENGTH)


def create_t5_tokenizer() -> Any:
    """Returns a T5Tokenizer of single characters."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(chr(code), -3.0) for code in range(ord("!"), ord("~") + 1)]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)


@lru_cache(maxsize=1)
def _clip_model() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Returns a byte-pair vocabulary and merges of CLIP's kind, learned from words.json.

    The commonest pair is merged until each word is one token (Sennrich et al. 2016,
    arXiv:1508.07909, section 3.2), the first in the alphabet among equals: the trainer of
    `tokenizers` chooses among equals by chance.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet)]
    words = [[*word[:-1], f"{word[-1]}</w>"] for word in _words()]
    merges = []
    while words := [word for word in words if len(word) > 1]:
        counts = Counter(pair for word in words for pair in pairwise(word))
        first, second = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append((first, second))
        tokens.append(first + second)
        words = [_merge(word, first, second) for word in words]
    tokens = list(dict.fromkeys([*tokens, "<|startoftext|>", "<|endoftext|>"]))
    return {token: index for index, token in enumerate(tokens)}, merges


def _merge(word: list[str], first: str, second: str) -> list[str]:
    merged: list[str] = []
    for symbol in word:
        if merged and merged[-1] == first and symbol == second:
            merged[-1] = first + second
        else:
            merged.append(symbol)
    return merged


def _words() -> list[str]:
    text = files("deployments.hf_diffusers.tiny_models").joinpath("words.json")
    words: list[str] = json.loads(text.read_text(encoding="utf-8"))
    return words
