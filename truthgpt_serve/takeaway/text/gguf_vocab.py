"""Writes a tokenizer into a GGUF file: byte-level BPE whose splitting llama.cpp knows by name."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from typing import Any

import gguf

from truthgpt_serve.takeaway.errors import TakeawayError

_LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS = {
    rf"{_LETTERS}\p{{N}}{_REST}": "qwen2",
    rf"{_LETTERS}\p{{N}}{{1,3}}{_REST}": "llama-bpe",
}
"""llama.cpp's name of a way to split texts, by the pattern in `tokenizer.json`."""


def add_vocab(writer: Any, tokenizer: Any, num_rows: int) -> None:
    """Adds tokens, merges, special tokens and the chat template.

    Args:
        writer: gguf's writer.
        tokenizer: Of transformers.
        num_rows: Rows of the embedding; those without a token are filled up.

    Raises:
        TakeawayError: llama.cpp would split texts otherwise, as far as is known here.
    """
    if tokenizer is None:
        raise TakeawayError("a GGUF file holds the tokenizer, and there is none beside the model")
    backend = getattr(tokenizer, "backend_tokenizer", None)
    pre = split_name({} if backend is None else json.loads(backend.to_str()))
    vocabulary = {number: token for token, number in tokenizer.get_vocab().items()}
    if max(vocabulary) >= num_rows:
        message = f"the tokenizer has {max(vocabulary) + 1} tokens, the model {num_rows}"
        raise TakeawayError(f"{message}: they do not belong together")
    added = tokenizer.added_tokens_decoder
    kinds = []
    for number in range(num_rows):
        if number not in vocabulary:
            kinds.append(gguf.TokenType.UNUSED)
        elif number in added:
            special = added[number].special
            kinds.append(gguf.TokenType.CONTROL if special else gguf.TokenType.USER_DEFINED)
        else:
            kinds.append(gguf.TokenType.NORMAL)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([vocabulary.get(n, f"[PAD{n}]") for n in range(num_rows)])
    writer.add_token_types(kinds)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        special = gguf.SpecialVocab(folder, load_merges=True, n_vocab=num_rows)
    special.add_to_gguf(writer, quiet=True)


def split_name(tokenizer: Mapping[str, Any]) -> str:
    """Returns llama.cpp's name for how a tokenizer splits texts before its merges.

    Args:
        tokenizer: What its `tokenizer.json` holds.

    Raises:
        TakeawayError: It is of another kind.
    """
    model, pre = tokenizer.get("model") or {}, tokenizer.get("pre_tokenizer") or {}
    steps = pre.get("pretokenizers", [pre])
    normalizer = (tokenizer.get("normalizer") or {}).get("type")
    last = steps[-1]
    is_bytes = model.get("type") == "BPE" and not model.get("byte_fallback")
    is_bytes = is_bytes and last.get("type") == "ByteLevel" and not last.get("add_prefix_space")
    if is_bytes and len(steps) == 1 and last.get("use_regex") and normalizer is None:
        return "gpt-2"
    if is_bytes and len(steps) == 2 and not last.get("use_regex"):
        name = SPLITS.get((steps[0].get("pattern") or {}).get("Regex", ""))
        if name is not None and normalizer == ("NFC" if name == "qwen2" else None):
            return name
    known = ", ".join(["gpt-2", *SPLITS.values()])
    raise TakeawayError(
        f"this tokenizer is none of those whose name in GGUF is known here ({known}): convert the "
        "folder of --to safetensors with llama.cpp's convert_hf_to_gguf.py"
    )
