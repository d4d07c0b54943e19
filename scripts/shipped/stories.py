"""Writes stories, and tells whether a text is one whose names, things and causes fit together."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from scripts.shipped.stories_frame import REQUESTS, expand
from scripts.shipped.stories_grammar import (
    Bound,
    Grammar,
    Reading,
    Slot,
    Step,
    Word,
    compile_template,
)
from scripts.shipped.stories_plots import MORALS, PLOTS
from scripts.shipped.stories_words import RULES, WORDS

Style = Literal["plain", "moral"]
STYLES: tuple[Style, ...] = ("plain", "moral")
"""`moral`: a last sentence says what the hero learned."""

USER, ASSISTANT = "<|user|>", "<|assistant|>"
"""What stands before a request and before its answer; one token each."""

CHAT_SHARE = 0.3
"""Share of the examples that begin with a request."""

_BETWEEN = re.compile(r"""(?:(?<=[.!?])|(?<=[.!?]")) (?=["A-Z])""")

GRAMMAR = Grammar(WORDS, RULES)

_PLOTS = {name: Word(name, tags=frozenset(needs.split())) for name, (needs, _) in PLOTS.items()}


def _expand(steps: list[Step]) -> tuple[tuple[str | None, ...], ...]:
    return tuple(tuple(text and expand(text) for text in step) for step in steps)


_STEPS: dict[tuple[str, Style], tuple[Step, ...]] = {}
for _name, (_, _steps) in PLOTS.items():
    _STEPS[_name, "plain"] = _expand(_steps)
    _STEPS[_name, "moral"] = _expand([*_steps, MORALS[_name]])

_REQUESTS = [expand(text) for text in REQUESTS]
_ASKED = {
    text: {part.variable for part in compile_template(text) if isinstance(part, Slot)}
    for text in _REQUESTS
}


@dataclass(frozen=True)
class Example:
    """One row of the data.

    Attributes:
        story: The story's text.
        request: What a user asked for, or None for a story without a request.
    """

    story: str
    request: str | None = None

    @property
    def text(self) -> str:
        """The row as a model reads it, without the tokens of begin and end."""
        if self.request is None:
            return self.story
        return f"{USER}{self.request}{ASSISTANT}{self.story}"


def write_example(split: str, seed: int, index: int, style: Style = "plain") -> Example:
    """Returns one example, the same for the same arguments.

    Args:
        split: Such as `train`: each has examples of its own.
        seed: Other seeds, other examples.
        index: The example's number, from 0.
        style: Stories with one number differ between styles only in their last sentence.
    """
    rng = random.Random(f"story {split} {seed} {index}")
    name = rng.choice(list(PLOTS))
    asks = rng.random() < CHAT_SHARE
    story, bound = GRAMMAR.write(_STEPS[name, style], rng, {"plot": _PLOTS[name]})
    if not asks:
        return Example(story)
    # Its own generator: the request must not depend on how many draws the story took.
    rng = random.Random(f"request {split} {seed} {index}")
    request = rng.choice([text for text in _REQUESTS if _ASKED[text] <= bound.keys()])
    return Example(story, GRAMMAR.write([(request,)], rng, bound)[0])


def read_story(text: str, style: Style = "plain", request: str | None = None) -> Reading:
    """Finds out whether the text is a story, or the beginning of one.

    Args:
        text: What a model wrote, together with what it was given to begin with.
        style: Of the story.
        request: If given, all that it names must be in the story too.
    """
    is_prefix = False
    for wanted in [{}] if request is None else read_request(request):
        for name, plot in _PLOTS.items():
            reading = GRAMMAR.read(text, _STEPS[name, style], {**wanted, "plot": plot})
            if reading.bound is not None:
                return reading
            is_prefix |= reading.is_prefix
    return Reading(None, is_prefix)


def read_request(request: str) -> Iterator[Bound]:
    """Yields each way to understand the request: a boat may be of wood or of paper."""
    for text in _REQUESTS:
        yield from GRAMMAR.readings(request, [(text,)], {})


def split_sentences(story: str) -> list[str]:
    """Returns the sentences of a story; joined by a space they are the story again."""
    return _BETWEEN.split(story)
