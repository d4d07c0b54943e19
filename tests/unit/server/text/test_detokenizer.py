"""Text comes in whole characters, and altogether as the tokenizer decodes it."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import transformers

from deployments.vllm.tiny_model import make_tiny_llama
from truthgpt_serve.server.text.detokenizer import REPLACEMENT, Detokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path: Path = make_tiny_llama(tmp_path_factory.mktemp("llama") / "model")
    return transformers.AutoTokenizer.from_pretrained(path)


def test_pieces_joined_are_the_text(tokenizer: Any) -> None:
    generator = random.Random(5)
    text = "naïve 世界 🙂 — ça va? " * 3

    def decode(tokens: list[int]) -> str:
        return str(tokenizer.decode(tokens, skip_special_tokens=True))

    prompts: list[list[int]] = [[], tokenizer.encode("before")]
    for prompt in prompts:
        for tokens in (
            tokenizer.encode(text),
            [generator.randrange(len(tokenizer)) for _ in range(200)],
        ):
            detokenizer = Detokenizer(decode, prompt)
            pieces = [detokenizer.push(token) for token in tokens]
            joined = "".join(pieces) + detokenizer.flush()
            whole = decode([*prompt, *tokens])
            assert joined == whole[len(decode(list(prompt))) :]
            assert sum(map(bool, pieces)) > len(tokens) / 8
    assert REPLACEMENT not in "".join(pieces[:1])


def test_a_character_is_held_back_until_it_is_whole(tokenizer: Any) -> None:
    tokens = tokenizer.encode("🙂")
    assert len(tokens) > 1
    detokenizer = Detokenizer(lambda ids: str(tokenizer.decode(ids)), [])
    assert [detokenizer.push(token) for token in tokens] == [""] * (len(tokens) - 1) + ["🙂"]


def test_what_never_becomes_a_character_is_let_through(tokenizer: Any) -> None:
    begun = tokenizer.encode("🙂")[0]
    for max_held, pushed in ((None, ["", "", ""]), (2, ["", 2 * REPLACEMENT, ""])):
        detokenizer = Detokenizer(lambda ids: str(tokenizer.decode(ids)), max_held=max_held)
        assert [detokenizer.push(begun) for _ in range(3)] == pushed
        assert "".join(pushed) + detokenizer.flush() == 3 * REPLACEMENT
