"""Makes the story model's tokenizer: byte-level BPE that has each word of the grammar as one token.

Any other text is spelled in pieces, down to bytes, and comes back as it was.
"""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from scripts.shipped.stories import ASSISTANT, STYLES, USER, write_example

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
SPECIAL = (BOS, EOS, PAD, USER, ASSISTANT)

VOCABULARY = 2048
MAX_POSITIONS = 1024
NUM_SAMPLES = 4000
"""Stories that the tokenizer learns from: enough that each word of the grammar occurs."""

CHAT_TEMPLATE = (
    "{{- bos_token }}\n"
    "{%- for message in messages %}\n"
    "{%- if message.role == 'user' %}{{- '" + USER + "' + message.content }}\n"
    "{%- elif message.role == 'assistant' %}"
    "{{- '" + ASSISTANT + "' + message.content + eos_token }}\n"
    "{%- endif %}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}{{- '" + ASSISTANT + "' }}{%- endif %}\n"
)
"""System messages are left out: the model has never seen one."""


def create_tokenizer() -> Tokenizer:
    """Returns the tokenizer, the same one every time.

    Raises:
        RuntimeError: The grammar has outgrown the vocabulary.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = _learn_merges(_count_words())
    tokens = [*SPECIAL, *alphabet, *(first + second for first, second in merges)]
    if len(tokens) > VOCABULARY:
        raise RuntimeError(f"the words need {len(tokens)} tokens: raise VOCABULARY ({VOCABULARY})")
    tokens += [f"<unused_{number}>" for number in range(VOCABULARY - len(tokens))]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, vocabulary[BOS])]
    )
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIAL]
    )
    return tokenizer


def save_tokenizer(folder: Path) -> dict[str, int]:
    """Writes the tokenizer's files into an existing folder; returns the special tokens' numbers.

    Raises:
        OSError: The folder cannot be written.
    """
    tokenizer = create_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "additional_special_tokens": [USER, ASSISTANT],
        "model_max_length": MAX_POSITIONS,
        "clean_up_tokenization_spaces": False,
    }
    text = json.dumps(config, indent=2) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    vocabulary = tokenizer.get_vocab()
    return {token: vocabulary[token] for token in SPECIAL}


def _count_words() -> Counter[str]:
    """Returns how often each word occurs, in the letters that stand for bytes."""
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False)
    counts: Counter[str] = Counter()
    for index in range(NUM_SAMPLES):
        example = write_example("tokenizer", 0, index, STYLES[index % len(STYLES)])
        for text in (example.story, example.request or ""):
            counts.update(word for word, _ in splitter.pre_tokenize_str(text))
    return counts


def _learn_merges(counts: Counter[str]) -> list[tuple[str, str]]:
    """Returns the merges after which each word is one token.

    Sennrich et al. 2016, arXiv:1508.07909, section 3.2; among pairs that occur equally often the
    first in the alphabet, since the trainer of `tokenizers` chooses by chance.
    """
    words = {word: list(word) for word in sorted(counts) if len(word) > 1}
    merges = []
    while words:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, pieces in words.items():
            for pair in pairwise(pieces):
                pairs[pair] += counts[word]
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        words = {word: _merge(pieces, best) for word, pieces in words.items()}
        words = {word: pieces for word, pieces in words.items() if len(pieces) > 1}
    return merges


def _merge(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for piece in pieces:
        if merged and (merged[-1], piece) == pair:
            merged[-1] += piece
        else:
            merged.append(piece)
    return merged
