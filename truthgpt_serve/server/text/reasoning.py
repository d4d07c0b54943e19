"""Tells what a model thinks from what it answers, by the marks `<think>` and `</think>`."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from truthgpt_serve.server.text.tools.template_form import Apply

THINK, THOUGHT = "<think>", "</think>"
_BEGUN, _OPTIONAL = "deepseek_r1", "qwen3"


class Pieces(NamedTuple):
    """What is new in an answer.

    Attributes:
        thought: Of what the model thinks.
        said: Of what it answers.
    """

    thought: str = ""
    said: str = ""


def find_reasoning(apply: Apply, vocabulary: Collection[str]) -> str | None:
    """Returns how the answers of a model with this template think, in the names of vLLM's parsers.

    DeepSeek-R1's template has the answer begin within the thoughts; Qwen3's writes empty ones if
    `enable_thinking` is false.

    Args:
        apply: The tokenizer's `apply_chat_template`; its errors are passed on.
        vocabulary: Its tokens: the marks are words like others where they are none of them.
    """
    if not (THINK in vocabulary and THOUGHT in vocabulary):
        return None
    chat = [{"role": "user", "content": "x"}]
    begun = str(apply(chat, tokenize=False, add_generation_prompt=True))
    if begun.rstrip().endswith(THINK):
        return _BEGUN
    off = apply(chat, tokenize=False, add_generation_prompt=True, enable_thinking=False)
    return _OPTIONAL if THOUGHT not in begun and str(off).rstrip().endswith(THOUGHT) else None


class ThoughtSplitter:
    """Splits one answer; what may still turn out to be a mark is held back.

    Args:
        prompt: The prompt, which may have begun the thoughts.
    """

    def __init__(self, prompt: str) -> None:
        self._mark = THOUGHT if prompt.rstrip().endswith(THINK) else THINK
        self._held = ""
        self._over = False
        self._trim = self._mark == THOUGHT  # the line break behind a mark is none's

    def feed(self, text: str) -> Pieces:
        """Takes the text that follows; returns what is certain by now."""
        if self._over and not self._trim:
            return Pieces(said=text)
        self._held += text
        thought = ""
        if self._mark == THINK:
            begin = self._held.lstrip()
            if not begin.startswith(THINK):
                if THINK.startswith(begin):
                    return Pieces()
                return self._end()
            self._mark, self._trim, self._held = THOUGHT, True, begin[len(THINK) :]
        if not self._over:
            thought = self._think()
        return Pieces(thought, self._say() if self._over else "")

    def finish(self) -> Pieces:
        """Returns what was held back, at the end of the answer."""
        held, self._held = self._held, ""
        is_thought = self._mark == THOUGHT and not self._over
        return Pieces(thought=held) if is_thought else Pieces(said=held)

    def _end(self) -> Pieces:
        held, self._held = self._held, ""
        self._over, self._trim = True, False
        return Pieces(said=held)

    def _think(self) -> str:
        held = self._held.lstrip("\n") if self._trim else self._held
        self._trim = self._trim and not held
        text, found, behind = held.partition(THOUGHT)
        if found:
            self._over = self._trim = True
            self._held = behind
            return text.rstrip("\n")
        sizes = range(min(len(THOUGHT) - 1, len(held)), 0, -1)
        keep = next((size for size in sizes if held.endswith(THOUGHT[:size])), 0)
        text = held[: len(held) - keep].rstrip("\n")
        self._held = held[len(text) :]
        return text

    def _say(self) -> str:
        held = self._held.lstrip("\n") if self._trim else self._held
        self._held, self._trim = "", self._trim and not held
        return held
