"""Writes and reads texts of a grammar whose variables keep their value through a whole text.

A template is text with slots such as `{thing.a}`: a variable, and the form in which it appears. The
first slot of a variable chooses its value, all later ones repeat it; so a reader can tell not only
whether each sentence is one of the grammar's, but whether they belong together.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

_SLOT = re.compile(r"\{([a-z]+)(?:\.([a-z]+))?(\^?)\}")


@dataclass(frozen=True, eq=False)
class Word:
    """A value of a variable: how it reads, and what it goes with.

    Attributes:
        text: The plain form.
        forms: Further forms by name. `a`, with the article, is there for all.
        tags: What rules between variables ask for.
    """

    text: str
    forms: Mapping[str, str] = field(default_factory=dict)
    tags: frozenset[str] = frozenset()

    def form(self, name: str) -> str:
        """Returns the form of that name; the empty name is the plain form.

        Raises:
            KeyError: There is no such form.
        """
        if not name:
            return self.text
        if name == "a" and name not in self.forms:
            return ("an " if self.text[0] in "aeiou" else "a ") + self.text
        return self.forms[name]


@dataclass(frozen=True)
class Slot:
    """A place in a template where a variable stands."""

    variable: str
    form: str
    capital: bool
    _shown: dict[Word, str] = field(default_factory=dict, init=False, repr=False, compare=False)

    def show(self, word: Word) -> str:
        """Returns what stands in the text if the variable has this value."""
        if word not in self._shown:
            text = word.form(self.form)
            self._shown[word] = text[0].upper() + text[1:] if self.capital else text
        return self._shown[word]


Bound = Mapping[str, Word]
Template = tuple[str | Slot, ...]
Step = Sequence[str | None]
"""Ways to say one sentence. None among them: the sentence may be left out."""

Rule = tuple[str, str, Callable[[Word, Word], bool]]
"""Two variables, and whether a value of the first goes with a value of the second."""


@dataclass
class Reading:
    """What a reader found out about a text.

    Attributes:
        bound: The variables' values if the text is a whole one of the grammar, else None.
        is_prefix: Whether the text is the beginning of one, or whole.
    """

    bound: Bound | None = None
    is_prefix: bool = False


def _from_the_other_side(fits: Callable[[Word, Word], bool]) -> Callable[[Word, Word], bool]:
    return lambda second, first: fits(first, second)


class Grammar:
    """Variables with their words, and the rules between them.

    Args:
        words: Each variable's values.
        rules: Which values go together. One whose variables are not both bound says nothing yet.
    """

    def __init__(self, words: Mapping[str, Sequence[Word]], rules: Iterable[Rule]) -> None:
        self.words = words
        self._candidates: dict[tuple[str | Word | None, ...], list[Word]] = {}
        self._rules: dict[str, list[tuple[str, Callable[[Word, Word], bool]]]] = {}
        for first, second, fits in rules:
            self._rules.setdefault(first, []).append((second, fits))
            self._rules.setdefault(second, []).append((first, _from_the_other_side(fits)))

    def candidates(self, variable: str, bound: Bound) -> list[Word]:
        """Returns the values that a variable can still have."""
        rules = self._rules.get(variable, ())
        key = (variable, *(bound.get(other) for other, _ in rules))
        if key not in self._candidates:
            known = [(bound[other], fits) for other, fits in rules if other in bound]
            self._candidates[key] = [
                word
                for word in self.words[variable]
                if all(fits(word, other) for other, fits in known)
            ]
        return self._candidates[key]

    def write(self, steps: Sequence[Step], rng: random.Random, bound: Bound) -> tuple[str, Bound]:
        """Returns a text drawn at random, and the values of its variables.

        Args:
            steps: The sentences, in order.
            rng: Decides everything that `bound` leaves open.
            bound: Values that are fixed before.
        """
        values = dict(bound)
        sentences = []
        for step in steps:
            sentence = rng.choice(step)
            if sentence is not None:
                sentences.append(self._write_sentence(compile_template(sentence), rng, values))
        return " ".join(sentences), values

    def _write_sentence(
        self, template: Template, rng: random.Random, values: dict[str, Word]
    ) -> str:
        parts = []
        for part in template:
            if isinstance(part, str):
                parts.append(part)
                continue
            word = values.get(part.variable)
            if word is None:
                word = rng.choice(self.candidates(part.variable, values))
                values[part.variable] = word
            parts.append(part.show(word))
        return "".join(parts)

    def readings(self, text: str, steps: Sequence[Step], bound: Bound) -> Iterator[Bound]:
        """Yields the variables' values for each way to read the text as a whole."""
        yield from _Reader(self, text).read_steps(steps, 0, 0, bound)

    def read(self, text: str, steps: Sequence[Step], bound: Bound) -> Reading:
        """Finds out whether the text is one of the grammar's, with these values fixed before."""
        reader = _Reader(self, text)
        for values in reader.read_steps(steps, 0, 0, bound):
            return Reading(values, is_prefix=True)
        return Reading(None, is_prefix=reader.ran_out)


class _Reader:
    """Follows every way to read one text at the same time as far as it goes.

    Attributes:
        ran_out: Whether the text ended while all of it fitted.
    """

    def __init__(self, grammar: Grammar, text: str) -> None:
        self._grammar = grammar
        self._text = text
        self.ran_out = False

    def read_steps(
        self, steps: Sequence[Step], index: int, position: int, bound: Bound
    ) -> Iterator[Bound]:
        """Yields the values for each way in which the rest of the text is the rest of the steps."""
        if position == len(self._text):
            self.ran_out = True
        if index == len(steps):
            if position == len(self._text):
                yield bound
            return
        for sentence in dict.fromkeys(steps[index]):
            if sentence is None:
                yield from self.read_steps(steps, index + 1, position, bound)
                continue
            template = compile_template(sentence if position == 0 else f" {sentence}")
            for end, values in self._read_sentence(template, 0, position, bound):
                yield from self.read_steps(steps, index + 1, end, values)

    def _read_sentence(
        self, template: Template, index: int, position: int, bound: Bound
    ) -> Iterator[tuple[int, Bound]]:
        if index == len(template):
            yield position, bound
            return
        part = template[index]
        if isinstance(part, str):
            if self._stands(part, position):
                yield from self._read_sentence(template, index + 1, position + len(part), bound)
            return
        known = bound.get(part.variable)
        words = [known] if known else self._grammar.candidates(part.variable, bound)
        for word in words:
            shown = part.show(word)
            if self._stands(shown, position):
                values = bound if known else {**bound, part.variable: word}
                yield from self._read_sentence(template, index + 1, position + len(shown), values)

    def _stands(self, expected: str, position: int) -> bool:
        if self._text.startswith(expected, position):
            return True
        if expected.startswith(self._text[position:]):
            self.ran_out = True
        return False


@cache
def compile_template(sentence: str) -> Template:
    """Returns the sentence as a sequence of texts and slots.

    `{thing}` is a variable in its plain form, `{thing.a}` in the form `a`, `{thing.a^}` the same
    with a capital letter.
    """
    parts: list[str | Slot] = []
    end = 0
    for found in _SLOT.finditer(sentence):
        if found.start() > end:
            parts.append(sentence[end : found.start()])
        parts.append(Slot(found[1], found[2] or "", capital=bool(found[3])))
        end = found.end()
    if end < len(sentence):
        parts.append(sentence[end:])
    return tuple(parts)
