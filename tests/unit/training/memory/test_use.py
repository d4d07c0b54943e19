"""What a worker says that it takes."""

from __future__ import annotations

from truthgpt_serve.training.memory.use import peak_memory


def test_memory_only_grows_and_is_in_bytes() -> None:
    before = peak_memory()
    block = b"x" * (64 << 20)
    after = peak_memory()
    assert len(block) > 1 << 20 < before <= after < 1 << 40
