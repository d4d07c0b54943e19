"""From samples to what a text model learns: token ids with labels."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from truthgpt_serve.training.data import BadRow
from truthgpt_serve.training.data.formats import Sample
from truthgpt_serve.training.text.learned import TurnFinder
from truthgpt_serve.training.text.messages import (
    ASSISTANT,
    TOOLS_FIELD,
    ChatMessage,
    check_answer,
    check_messages,
    check_text,
    check_tools,
    is_learned,
)
from truthgpt_serve.training.text.templates import ChatTemplate

IGNORED = -100
"""The label of a token that is read but not learned, in PyTorch's cross entropy."""
Example = dict[str, Any]
Labeled = tuple[list[int], list[int]]
"""Tokens, and the label of each."""


class TooLong(BadRow):
    """An example of which `data.max_seq_len` leaves nothing to learn."""


def long_prompt(num_tokens: int, max_len: int, what: str = "the answer") -> TooLong:
    """Returns the error of a prompt that leaves no room for what is learned behind it."""
    return TooLong(
        f"the prompt has {num_tokens} tokens, which leaves none of the {max_len} of "
        f"data.max_seq_len for {what}"
    )


class TokenExamples:
    """Makes token ids and labels, for learning to continue texts and to answer.

    Args:
        cfg: The configuration.
        tokenizer: The model's.

    Attributes:
        num_cut: Examples that were longer than `data.max_seq_len`.
    """

    def __init__(self, cfg: Mapping[str, Any], tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        data = cfg["data"]
        # Packed texts go on in the next row instead.
        self._max_len = sys.maxsize if data["pack"] else data["max_seq_len"]
        self._learns_all = cfg["training"]["loss_on"] == "all"
        self._template = ChatTemplate(tokenizer, for_turns=not self._learns_all)
        self.turns = TurnFinder(self._template)
        self.num_cut = 0
        self._num_chats = 0

    def __call__(self, sample: Sample) -> Example:
        """Returns `input_ids` and `labels` of a sample.

        Raises:
            BadRow: It cannot be used.
        """
        if "messages" in sample.values:
            ids, labels = self._chat(sample)
        elif "prompt" in sample.values:
            ids, labels = self._answered(sample)
        else:
            ids, labels = self._text(sample)
        self.num_cut += len(ids) > self._max_len
        return {"input_ids": ids[: self._max_len], "labels": labels[: self._max_len]}

    def lines(self) -> Iterator[str]:
        """Yields the lines of the plan on what is learned of chats."""
        if self._num_chats and not self._learns_all:
            yield f"learns   the assistant's turns, {self.turns.describe()}"

    def _text(self, sample: Sample) -> Labeled:
        name = sample.name("text")
        ids = self._ids(check_text(sample.values.get("text"), name)) + self._end()
        if len(ids) < 2:
            raise BadRow(f"{name!r} has fewer than two tokens, so there is nothing to predict")
        return ids, list(ids)

    def _chat(self, sample: Sample) -> Labeled:
        name = sample.name("messages")
        messages = check_messages(sample.values["messages"], name)
        ids, labels = self._render(messages, check_tools(sample.values.get(TOOLS_FIELD)), name)
        if all(label == IGNORED for label in labels[1:]):
            if not self._learns_all and not any(m["role"] == ASSISTANT for m in messages):
                fix = "training.loss_on: all would learn the others'"
                raise BadRow(f"{name!r} has no message of the assistant to learn ({fix})")
            raise BadRow(f"{name!r} has nothing to learn: each message there has weight 0")
        if all(label == IGNORED for label in labels[1 : self._max_len]):
            limit = f"its first {self._max_len} tokens (data.max_seq_len)"
            raise TooLong(f"{name!r} has nothing to learn in {limit}")
        return ids, labels

    def _answered(self, sample: Sample) -> Labeled:
        values, (name, answer_name) = sample.values, map(sample.name, ("prompt", "completion"))
        if isinstance(values["prompt"], list):
            prompt = check_messages(values["prompt"], name)
            answer = check_answer(values["completion"], answer_name)
            tools = check_tools(values.get(TOOLS_FIELD))
            ids, labels = self._render([*prompt, *answer], tools, name, num_prompt=len(prompt))
        else:
            text = check_text(values["prompt"], name)
            answer_text = check_text(values["completion"], answer_name)
            first = self._ids(text)
            second = self._ids(answer_text, special=False) + self._end()
            learned = first if self._learns_all else [IGNORED] * len(first)
            ids, labels = first + second, learned + second
        num_read = next((n for n, label in enumerate(labels) if label != IGNORED), len(labels))
        if num_read >= self._max_len or num_read == len(labels):
            raise long_prompt(num_read, self._max_len)
        return ids, labels

    def _render(
        self,
        messages: list[ChatMessage],
        tools: list[Any] | None,
        name: str,
        *,
        num_prompt: int = 0,
    ) -> Labeled:
        """Returns the tokens of a chat; of its first messages, the prompt, none is learned."""
        self._num_chats += 1
        bare = self._template.prepare(messages, tools, name)
        is_read = [n < num_prompt or not is_learned(m) for n, m in enumerate(messages)]
        if self._learns_all:
            return self._all_but(
                bare, tools, [n for n, m in enumerate(messages) if not is_learned(m)]
            )
        if not any(is_read[n] for n, m in enumerate(messages) if m["role"] == ASSISTANT):
            ids, spans = self.turns.tokens(bare, tools)
        else:
            ids, turns = self.turns.of_messages(bare, tools)
            spans = [span for index, span in turns.items() if not is_read[index]]
        labels = [IGNORED] * len(ids)
        for start, end in spans:
            labels[start:end] = ids[start:end]
        return ids, labels

    def _all_but(
        self, bare: Sequence[ChatMessage], tools: list[Any] | None, unlearned: Sequence[int]
    ) -> Labeled:
        if not unlearned:
            ids = self._template.ids(bare, tools)
            return ids, list(ids)
        ids, turns = self.turns.of_messages(bare, tools)
        labels = list(ids)
        for start, end in (turns[index] for index in unlearned):
            labels[start:end] = [IGNORED] * (end - start)
        return ids, labels

    def _ids(self, text: str, *, special: bool = True) -> list[int]:
        ids: list[int] = self._tokenizer(
            text, add_special_tokens=special, return_attention_mask=False, verbose=False
        )["input_ids"]
        end = self._tokenizer.eos_token_id
        return ids[:-1] if ids and ids[-1] == end else ids

    def _end(self) -> list[int]:
        end = self._tokenizer.eos_token_id
        return [] if end is None else [end]


class Packer:
    """Joins texts to rows of exactly `length` tokens; a rest at the end is left out."""

    def __init__(self, length: int) -> None:
        self._length = length
        self._ids: list[int] = []
        self._labels: list[int] = []

    def __call__(self, example: Example) -> Iterator[Example]:
        """Takes the tokens of one text and yields the rows that are full."""
        self._ids += example["input_ids"]
        self._labels += example["labels"]
        while len(self._ids) >= self._length:
            length = self._length
            yield {"input_ids": self._ids[:length], "labels": self._labels[:length]}
            self._ids, self._labels = self._ids[length:], self._labels[length:]
