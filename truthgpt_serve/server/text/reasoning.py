"""Tells what a model thinks from what it answers, by marks such as `<think>` and `</think>`."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

from truthgpt_serve.server.text.tools.harmony import CHANNEL, END, MESSAGE, START
from truthgpt_serve.server.text.tools.template_form import Apply
from truthgpt_serve.server.thinking_switch import switched


class Thinking(NamedTuple):
    """How a model marks its thoughts.

    Attributes:
        name: In the words of vLLM's parsers, empty where it has none.
        begin: The token before thoughts.
        end: The token behind them.
        title: A word behind the first.
        binds: Whether what binds an answer can begin behind them.
    """

    name: str
    begin: str = "<think>"
    end: str = "</think>"
    title: str = ""
    binds: bool = True


_BEGUN, _OPTIONAL, _ASKED = Thinking("deepseek_r1"), Thinking("qwen3"), Thinking("")
_HARMONY = Thinking("openai_gptoss", CHANNEL, END, binds=False)
_OTHERS = (
    Thinking("seed_oss", "<seed:think>", "</seed:think>"),
    Thinking("mistral", "[THINK]", "[/THINK]"),
    Thinking("cohere_command3", "<|START_THINKING|>", "<|END_THINKING|>"),
    Thinking("gemma4", "<|channel>", "<channel|>", "thought"),
    Thinking("", "<|inner_prefix|>", "<|inner_suffix|>"),  # Apertus
)
"""Those whose marks mean nothing else: a template that has them is that of a model that thinks."""


class Pieces(NamedTuple):
    """What is new in an answer.

    Attributes:
        thought: Of what the model thinks.
        said: Of what it answers.
    """

    thought: str = ""
    said: str = ""


def find_reasoning(apply: Apply, vocabulary: Collection[str]) -> Thinking | None:
    """Returns how the answers of a model with this template think.

    DeepSeek-R1's template has the answer begin within the thoughts; Qwen3's writes empty ones if
    `enable_thinking` is false, and Qwen3.5's does both; DeepSeek-V3.1's begins them if asked to.

    Args:
        apply: The tokenizer's `apply_chat_template`; its errors are passed on.
        vocabulary: Its tokens: the marks are words like others where they are none of them.
    """
    chat = [{"role": "user", "content": "x"}]
    begun = _try(apply, chat, add_generation_prompt=True).rstrip()
    if CHANNEL in vocabulary and MESSAGE in vocabulary and begun.endswith(f"{START}assistant"):
        return _HARMONY
    for one in _OTHERS:
        is_known = one.begin in vocabulary and one.end in vocabulary
        if is_known and any(one.begin in text for text in _renderings(apply)):
            return one
    if not (_BEGUN.begin in vocabulary and _BEGUN.end in vocabulary):
        return None
    begun = str(apply(chat, tokenize=False, add_generation_prompt=True))
    off = _try(apply, chat, add_generation_prompt=True, enable_thinking=False).rstrip()
    has_switch = off.endswith(_BEGUN.end)
    if begun.rstrip().endswith(_BEGUN.begin):
        return _OPTIONAL if has_switch else _BEGUN
    if has_switch and _BEGUN.end not in begun:
        return _OPTIONAL
    on = _try(apply, chat, add_generation_prompt=True, **switched({}, is_on=True)).rstrip()
    return _ASKED if on.endswith(_BEGUN.begin) else None


def _renderings(apply: Apply) -> Iterator[str]:
    """Yields chats as a template writes them that may show how the model thinks."""
    user = {"role": "user", "content": "x"}
    thought = dict.fromkeys(("reasoning_content", "reasoning", "thinking", "thoughts"), "y")
    parts = [{"type": "thinking", "thinking": "y"}, {"type": "text", "text": "z"}]
    answers: list[dict[str, Any]] = [
        {"role": "assistant", "content": "z", **thought},
        {"role": "assistant", "content": parts},
        {"role": "assistant", "content": {"blocks": [{"type": "thoughts", "text": "y"}]}},
    ]
    for options in ({}, {"enable_thinking": False}, {"enable_thinking": True}):
        yield _try(apply, [user], add_generation_prompt=True, **options)
    for answer in answers:
        yield _try(apply, [user, answer])


def _try(apply: Apply, messages: list[dict[str, Any]], **options: Any) -> str:
    try:
        return str(apply(messages, tokenize=False, **options))
    except Exception:  # templates raise what they like about what they do not take
        return ""


class ThoughtSplitter:
    """Splits one answer; what may still turn out to be a mark is held back.

    Args:
        prompt: The prompt, which may have begun the thoughts.
        thinking: How the model marks them.
    """

    def __init__(self, prompt: str, thinking: Thinking = _BEGUN) -> None:
        self._begin, self._end_mark = thinking.begin, thinking.end
        self._title = thinking.title
        self._is_begun = prompt.rstrip().endswith(self._begin)
        self._held = ""
        self._over = False
        self._trim = self._is_begun  # the line break behind a mark is none's

    def feed(self, text: str) -> Pieces:
        """Takes the text that follows; returns what is certain by now."""
        if self._over and not self._trim:
            return Pieces(said=text)
        self._held += text
        thought = ""
        if not (self._is_begun or self._over):
            begin = self._held.lstrip()
            if not begin.startswith(self._begin):
                if self._begin.startswith(begin):
                    return Pieces()
                return self._end()
            self._is_begun, self._trim, self._held = True, True, begin[len(self._begin) :]
        if not self._over:
            thought = self._think()
        return Pieces(thought, self._say() if self._over else "")

    def finish(self) -> Pieces:
        """Returns what was held back, at the end of the answer."""
        held, self._held = self._held, ""
        if self._is_begun and self._title.startswith(held):
            return Pieces()
        return Pieces(thought=held) if self._is_begun and not self._over else Pieces(said=held)

    def _end(self) -> Pieces:
        held, self._held = self._held, ""
        self._over, self._trim = True, False
        return Pieces(said=held)

    def _think(self) -> str:
        if self._title and self._title.startswith(self._held):
            return ""
        held = self._held.removeprefix(self._title)
        self._title = ""
        held = held.lstrip("\n") if self._trim else held
        self._trim = self._trim and not held
        text, found, behind = held.partition(self._end_mark)
        if found:
            self._over = self._trim = True
            self._held = behind
            return text.rstrip("\n")
        mark = self._end_mark
        sizes = range(min(len(mark) - 1, len(held)), 0, -1)
        keep = next((size for size in sizes if held.endswith(mark[:size])), 0)
        text = held[: len(held) - keep].rstrip("\n")
        self._held = held[len(text) :]
        return text

    def _say(self) -> str:
        held = self._held.lstrip("\n") if self._trim else self._held
        self._held, self._trim = "", self._trim and not held
        return held
