"""Renders chats by a tokenizer's template, and refuses those of which it leaves something out."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from functools import partial
from typing import Any

from jinja2.exceptions import TemplateError

from truthgpt_serve.training.data import BadRow
from truthgpt_serve.training.text.messages import ChatMessage
from truthgpt_serve.training.text.template_check import CHANGES, Change, Marks, form_of

MAX_FORMS = 10_000
"""Shapes of chats of which it is remembered that the template shows all of them."""
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
"""The mark that transformers looks for."""


class ChatTemplate:
    """The chat template of a tokenizer.

    Args:
        tokenizer: The model's.
        for_turns: Whether the assistant's turns are asked for: of a known template without marks
            trl's variant with marks is then taken, as trl does for `assistant_only_loss`.

    Attributes:
        has_marks: Whether the template marks what the assistant says.
        is_variant: Whether it is trl's variant.
    """

    def __init__(self, tokenizer: Any, *, for_turns: bool = False) -> None:
        self._tokenizer = tokenizer
        own = _template_of(tokenizer)
        marked = bool(_GENERATION.search(own))
        variant = _variant(tokenizer) if for_turns and own and not marked else None
        self._more = {} if variant is None else {"chat_template": variant}
        self.is_variant = variant is not None
        self.has_marks = tokenizer.is_fast and (marked or self.is_variant)
        self._changes: dict[Any, Change] = {}

    def prepare(
        self, messages: Sequence[ChatMessage], tools: list[Any] | None, field: str
    ) -> list[ChatMessage]:
        """Returns the messages as the template takes them, without what is not for it.

        Contents in parts are joined by line ends where the template knows none, as the serving
        engine does, and arguments of calls are JSON text where it takes no object.

        Raises:
            BadRow: The template would leave a part of them out, or refuses them.
        """
        bare = [{k: v for k, v in one.items() if k != "weight"} for one in messages]
        form = (bool(tools), *(form_of(message) for message in bare))
        if form not in self._changes:
            change = self._choose(bare, tools, field)
            if len(self._changes) >= MAX_FORMS:
                self._changes.clear()
            self._changes[form] = change
        return self._changes[form](bare)

    def _choose(self, bare: list[ChatMessage], tools: list[Any] | None, field: str) -> Change:
        """Returns the first change of messages that makes the template show all of them."""
        problems = []
        for change in CHANGES:
            try:
                missing = self._missing(change(bare), tools, field)
            except BadRow as error:
                problems.append(error)
                continue
            if not missing:
                return change
            problems.append(
                BadRow(
                    f"the model's chat template leaves out {missing}, which would be lost "
                    "(remove it from the row, or give the tokenizer a template that renders it)"
                )
            )
        raise problems[0]

    def ids(
        self, messages: Sequence[ChatMessage], tools: list[Any] | None, **more: Any
    ) -> list[int]:
        """Returns the tokens of prepared messages.

        Raises:
            BadRow: The template refuses them.
        """
        found: list[int] = self._apply(messages, tools, tokenize=True, return_dict=False, **more)
        return found

    def marked_ids(
        self, messages: Sequence[ChatMessage], tools: list[Any] | None
    ) -> tuple[list[int], list[int]]:
        """Returns the tokens of prepared messages, and 1 for each that the template marks.

        Raises:
            BadRow: The template refuses them.
        """
        found = self._apply(
            messages, tools, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        return found["input_ids"], found["assistant_masks"]

    def tokens_of(
        self, text: str, spans: Sequence[tuple[int, int]]
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """Returns the tokens of a rendered text, and those that make up each span of characters."""
        encode = partial(self._tokenizer, add_special_tokens=False, verbose=False)
        if not self._tokenizer.is_fast:
            ids: list[int] = encode(text)["input_ids"]
            ends = [[len(encode(text[:place])["input_ids"]) for place in span] for span in spans]
            return ids, [(start, end) for start, end in ends]
        found = encode(text, return_offsets_mapping=True)
        firsts = [first for first, _ in found["offset_mapping"]]
        lasts = [last for _, last in found["offset_mapping"]]
        # A token that a span shares with what is before it belongs to the span.
        return found["input_ids"], [
            (bisect_right(lasts, start), bisect_left(firsts, end)) for start, end in spans
        ]

    def end_of_turn(self, text: str, end: int) -> int:
        """Returns the end of a turn with the end token that may follow it."""
        token = self._tokenizer.eos_token
        return end + len(token) if token and text.startswith(token, end) else end

    def text(self, messages: Sequence[ChatMessage], tools: list[Any] | None, **more: Any) -> str:
        """Returns the text of prepared messages.

        Raises:
            BadRow: The template refuses them.
        """
        return str(self._apply(messages, tools, tokenize=False, **more))

    def _apply(self, messages: Sequence[ChatMessage], tools: list[Any] | None, **more: Any) -> Any:
        try:
            return self._tokenizer.apply_chat_template(
                list(messages), tools=tools, **self._more, **more
            )
        except (TemplateError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise BadRow(f"the chat template refuses it: {error}") from error

    def _missing(self, messages: list[ChatMessage], tools: list[Any] | None, field: str) -> str:
        marks = Marks()
        try:
            text = self.text(marks.messages(messages), marks.tools(tools))
        except BadRow:
            self.text(messages, tools)  # refused as it is, rather than for the marks
            return ""
        found = marks.missing(text)
        if found is None:
            return ""
        return found if found.startswith("the column") else f"{field!r}{found}"


def _template_of(tokenizer: Any) -> str:
    template = getattr(tokenizer, "chat_template", None) or ""
    if isinstance(template, dict):
        template = template.get("default") or next(iter(template.values()), "")
    return str(template)


def _variant(tokenizer: Any) -> str | None:
    """Returns trl's variant of a known template, with marks, or None."""
    from trl import get_training_chat_template

    try:
        found: str | None = get_training_chat_template(tokenizer)
    except (TemplateError, ValueError, TypeError, KeyError, AttributeError):  # it knows none
        return None
    return found
