"""Tokenizers over tiny vocabularies, made locally.

Does not know the text encoders that read the tokens.
"""

from __future__ import annotations

import json
from collections import Counter
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from tokenizers import pre_tokenizers
from transformers import CLIPTokenizer, GemmaTokenizer, Qwen2Tokenizer

from deployments.hf_diffusers.tiny_models.tokenizers import CLIP_LENGTH

_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def create_clip_tokenizer() -> Any:
    """Returns a CLIPTokenizer that pads with its end token, as CLIP's own does.

    The words of words.json are one token each, and other English words a few.
    """
    vocabulary, merges = _clip_model()
    return CLIPTokenizer(vocab=dict(vocabulary), merges=list(merges), model_max_length=CLIP_LENGTH)


def create_qwen_tokenizer() -> Any:
    """Returns a Qwen2Tokenizer of single bytes, with a chat template."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokens = special + sorted(pre_tokenizers.ByteLevel.alphabet())
    return Qwen2Tokenizer(
        vocab={token: index for index, token in enumerate(tokens)},
        merges=[],
        additional_special_tokens=special[1:],
        chat_template=_CHAT_TEMPLATE,
        model_max_length=4096,
    )


def create_gemma_tokenizer() -> Any:
    """Returns a GemmaTokenizer of single bytes."""
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    tokens += [f"<0x{byte:02X}>" for byte in range(256)]
    return GemmaTokenizer(
        vocab={token: index for index, token in enumerate(tokens)}, model_max_length=4096
    )


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
    file = Path(__file__).with_name("words.json")
    words: list[str] = json.loads(file.read_text(encoding="utf-8"))
    return words
