"""Which tokens of a chat are learned: those of the assistant's turns, with what ends each.

A template with `{% generation %}` marks says it itself, as trl's `assistant_only_loss` asks it. For
others each turn is what the template adds to the beginning of the chat before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from truthgpt_serve.training.data import BadRow
from truthgpt_serve.training.text.messages import ASSISTANT, ChatMessage
from truthgpt_serve.training.text.templates import ChatTemplate

Span = tuple[int, int]
"""First position and end."""


class TurnFinder:
    """Finds the assistant's turns in rendered chats."""

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template
        self.num_unmarked = 0
        """Turns that a template's own marks leave out."""

    def describe(self) -> str:
        """Returns in words how turns are found, and what is missed."""
        if not self._template.has_marks:
            return "each being what the chat template adds to the messages before it"
        whose = "trl's variant of this model's" if self._template.is_variant else "the model's own"
        found = f"by the generation marks of {whose} chat template"
        if self.num_unmarked:
            found += f", which leave {self.num_unmarked:,} turns unlearned"
        return found

    def tokens(
        self, messages: Sequence[ChatMessage], tools: list[Any] | None
    ) -> tuple[list[int], list[Span]]:
        """Returns the tokens of a chat, and those of each assistant's message in order.

        Raises:
            BadRow: The template refuses the chat, or shows its beginnings otherwise than alone.
        """
        if not self._template.has_marks:
            return self._by_beginnings(messages, tools)
        ids, mask = self._template.marked_ids(messages, tools)
        runs = list(_runs(mask))
        num_turns = sum(message["role"] == ASSISTANT for message in messages)
        if num_turns and not runs:  # another of the tokenizer's templates was taken, without marks
            return self._by_beginnings(messages, tools)
        self.num_unmarked += max(0, num_turns - len(runs))
        return ids, runs

    def of_messages(
        self, messages: Sequence[ChatMessage], tools: list[Any] | None
    ) -> tuple[list[int], dict[int, Span]]:
        """Returns the tokens of a chat, and by its index those of each assistant's message.

        Raises:
            BadRow: See `tokens`; or the template's marks do not tell the messages apart.
        """
        turns = [n for n, message in enumerate(messages) if message["role"] == ASSISTANT]
        ids, found = self.tokens(messages, tools)
        if len(found) != len(turns):
            ids, found = self._by_beginnings(messages, tools)
        return ids, dict(zip(turns, found, strict=True))

    def _by_beginnings(
        self, messages: Sequence[ChatMessage], tools: list[Any] | None
    ) -> tuple[list[int], list[Span]]:
        text = self._template.text(messages, tools)
        spans = [
            self._turn(messages, tools, index, text)
            for index, message in enumerate(messages)
            if message["role"] == ASSISTANT
        ]
        return self._template.tokens_of(text, spans)

    def _turn(
        self, messages: Sequence[ChatMessage], tools: list[Any] | None, index: int, whole: str
    ) -> Span:
        """Returns where a message of the assistant begins and ends in the whole text."""
        template = self._template
        after = template.text(messages[: index + 1], tools)
        before = template.text(messages[:index], tools) if index else ""
        if not whole.startswith(after) or not after.startswith(before):
            raise BadRow(
                f"the chat template shows the messages up to [{index}] otherwise once others "
                "follow, so that the assistant's turns cannot be told apart (give the tokenizer a "
                "template with {% generation %} marks, or set training.loss_on: all)"
            )
        if index:
            asked = template.text(messages[:index], tools, add_generation_prompt=True)
        else:
            asked = self._opened(after, tools)
        start = max(len(before), _num_shared(asked, whole))
        return start, template.end_of_turn(whole, len(after))

    def _opened(self, after: str, tools: list[Any] | None) -> str:
        """Returns a chat's text up to its first message, one of the assistant's."""
        user = [{"role": "user", "content": "x"}]
        try:
            asked = self._template.text(user, tools, add_generation_prompt=True)
            opening = asked[len(self._template.text(user, tools)) :]
        except BadRow:
            return ""
        return after[: after.find(opening) + len(opening)] if opening in after else ""


def _runs(mask: Sequence[int]) -> Iterator[Span]:
    """Yields each run of ones."""
    start = None
    for place, bit in enumerate([*mask, 0]):
        if bit and start is None:
            start = place
        elif not bit and start is not None:
            yield start, place
            start = None


def _num_shared(first: str, second: str) -> int:
    """Returns how many characters two texts begin with in common."""
    if second.startswith(first):
        return len(first)
    pairs = enumerate(zip(first, second, strict=False))
    return next((n for n, (one, other) in pairs if one != other), len(second))
