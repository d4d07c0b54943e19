"""Tokenizers of language models over tiny vocabularies, made locally.

Does not know the text encoders that read the tokens.
"""

from __future__ import annotations

from typing import Any

from tokenizers import pre_tokenizers
from transformers import GemmaTokenizer, Qwen2Tokenizer

_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


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
