"""Text comes in whole characters, and altogether as the tokenizer decodes it."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer

from deployments.onnx.text.pieces import UNFINISHED, Pieces
from deployments.vllm.tiny_model import make_tiny_llama


def test_characters_of_several_tokens_come_whole(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(make_tiny_llama(tmp_path / "llama"))
    text = "Grüße aus 東京 🙂 end"
    pieces = Pieces(tokenizer)
    found = [pieces.push(token) for token in tokenizer.encode(text)]
    assert "" in found
    assert not any(UNFINISHED in piece for piece in found)
    assert "".join(found) + pieces.flush() == text
    half = Pieces(tokenizer)
    assert half.push(tokenizer.encode("🙂")[0]) == ""
    assert half.flush() == UNFINISHED
