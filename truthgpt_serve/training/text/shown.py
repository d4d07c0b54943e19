"""Shows one example as the model sees it, with what is learned marked, in plain text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any

from truthgpt_serve.training.data.inventory import shown
from truthgpt_serve.training.text.examples import IGNORED

MAX_LINES = 24
"""Lines of an example that are shown: the first and the last."""
MAX_WIDTH = 100
"""Characters of a line that are shown."""
_PARTS = ("prompt", "completion", "chosen", "rejected", "text")


def example_lines(example: Mapping[str, Any], tokenizer: Any) -> list[str]:
    """Returns lines for the plan: what is read, and what is learned, each in lines of its own.

    Args:
        example: An example of any kind, as a table holds it.
        tokenizer: The model's.
    """
    if "labels" in example:
        lines = list(_token_lines(example, tokenizer))
        head = "example  the first one; 'learn' is what the model learns to say"
    else:
        lines = [line for name in _PARTS if name in example for line in _part_lines(name, example)]
        head = "example  the first one"
    if len(lines) > MAX_LINES:
        half = MAX_LINES // 2
        lines = [*lines[:half], f"  ... {len(lines) - 2 * half:,} lines more", *lines[-half:]]
    return [head, *lines] if lines else []


def _token_lines(example: Mapping[str, Any], tokenizer: Any) -> Iterator[str]:
    pairs = zip(example["input_ids"], example["labels"], strict=True)
    for is_learned, run in groupby(pairs, key=lambda pair: pair[1] != IGNORED):
        text = tokenizer.decode([token for token, _ in run], skip_special_tokens=False)
        yield from _lines("learn" if is_learned else "read", text)


def _part_lines(name: str, example: Mapping[str, Any]) -> Iterator[str]:
    value = example[name]
    if isinstance(value, str):
        yield from _lines(name, value)
    # A prompt keeps the row's other columns, which may hold anything under these names.
    for message in value if isinstance(value, list) else ():
        if not isinstance(message, Mapping):
            continue
        content = message.get("content")
        text = content if isinstance(content, str) else repr(content)
        if message.get("tool_calls"):
            text += f" {message['tool_calls']!r}"
        yield from _lines(f"{name} {message.get('role')}", text)


def _lines(name: str, text: str) -> Iterator[str]:
    for line in text.removesuffix("\n").split("\n"):
        cut = line if len(line) <= MAX_WIDTH else f"{line[:MAX_WIDTH]}..."
        yield f"  {shown(name):<6}| {shown(cut)}"
