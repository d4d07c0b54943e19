"""Learned words: rows that are added to the token embeddings of frozen text encoders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

from truthgpt_serve.training.errors import TrainingError

FILES = {
    "text_encoder": "learned_embeds.safetensors",
    "text_encoder_2": "learned_embeds_2.safetensors",
}
"""The file of each text encoder's rows, as the examples of Diffusers name them."""


def tokenizer_of(encoder: str) -> str:
    """Returns the name of the tokenizer that goes with a text encoder."""
    return encoder.replace("text_encoder", "tokenizer")


def words_of(inversion: Mapping[str, Any]) -> list[str]:
    """Returns the tokens of the learned word, one for each of its vectors."""
    word, count = inversion["placeholder"], inversion["num_vectors"]
    return [word, *(f"{word}_{index}" for index in range(1, count))]


def load_tokenizer(folder: Path, encoder: str, index: Mapping[str, Any]) -> Any:
    """Returns the tokenizer of a text encoder of a pipeline's folder."""
    name = tokenizer_of(encoder)
    return getattr(transformers, index[name][1]).from_pretrained(folder / name)


def check_words(tokenizer: Any, inversion: Mapping[str, Any]) -> int:
    """Returns the token id that the learned word begins with.

    Raises:
        TrainingError: The word is one that the tokenizer knows, or the word that it is to begin
            with is not one token.
    """
    known = tokenizer.get_vocab()
    for word in words_of(inversion):
        # Of CLIP's words the last part has an ending of its own.
        if word in known or f"{word}</w>" in known:
            message = f"training.textual_inversion.placeholder: {word!r} is a token already"
            raise TrainingError(f"{message} (choose another word, such as <my-{word.strip('<>')}>)")
    initializer = inversion["initializer"]
    ids: list[int] = tokenizer.encode(initializer, add_special_tokens=False)
    if len(ids) != 1:
        pieces = ", ".join(repr(one) for one in tokenizer.convert_ids_to_tokens(ids))
        message = f"training.textual_inversion.initializer: {initializer!r} is {len(ids)} tokens"
        raise TrainingError(f"{message}: {pieces} (choose a word of one token)")
    return ids[0]


class LearnedWords(torch.nn.Module):  # type: ignore[misc] # torch counts as Any here
    """Token embeddings of which only added rows are trained; stands in the place of the original.

    Args:
        base: The embeddings of the known tokens, which stay as they are.
        first: Id of the first added token.
        rows: What the added tokens begin with, shape (added, width).
    """

    def __init__(self, base: Any, first: int, rows: Any) -> None:
        super().__init__()
        self.base = base
        self.first = first
        self.learned = torch.nn.Embedding.from_pretrained(rows.float(), freeze=False)

    @property
    def weight(self) -> Any:
        """The embeddings of the known tokens."""
        return self.base.weight

    def forward(self, ids: Any) -> Any:
        """Returns the embeddings of tokens, shape of `ids` and behind it the width."""
        known = self.base(ids.clamp(max=self.first - 1))
        learned = self.learned((ids - self.first).clamp(min=0)).to(known.dtype)
        return torch.where((ids >= self.first).unsqueeze(-1), learned, known)


def add_words(encoder: Any, tokenizer: Any, inversion: Mapping[str, Any]) -> LearnedWords:
    """Adds the learned word to a tokenizer and to its text encoder.

    Raises:
        TrainingError: See `check_words`.
    """
    initializer = check_words(tokenizer, inversion)
    tokens = words_of(inversion)
    tokenizer.add_tokens(tokens)
    first: int = tokenizer.convert_tokens_to_ids(tokens[0])
    base = encoder.get_input_embeddings()
    rows = base.weight[initializer].detach().repeat(len(tokens), 1)
    words = LearnedWords(base, first, rows)
    encoder.set_input_embeddings(words)
    return words
