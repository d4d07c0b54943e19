"""From rows to what a text model learns: token ids with labels, pairs of answers, or prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from truthgpt_serve.training.data.rows import value_problem
from truthgpt_serve.training.text.messages import (
    ASSISTANT,
    TOOLS_FIELD,
    BadRow,
    ChatMessage,
    check_messages,
    check_prompt,
    check_text,
    check_tools,
    is_learned,
)
from truthgpt_serve.training.text.templates import ChatTemplate, spans

IGNORED = -100
"""The label of a token that is read but not learned, in PyTorch's cross entropy."""
Example = dict[str, Any]
Labeled = tuple[list[int], list[int]]
"""Tokens, and the label of each."""


class TokenExamples:
    """Makes token ids and labels, for learning to continue texts.

    Args:
        data: The `data` section.
        tokenizer: The model's.
    """

    def __init__(self, data: Mapping[str, Any], tokenizer: Any) -> None:
        self._data = data
        self._tokenizer = tokenizer
        self._max_len = data["max_seq_len"]
        self._template = ChatTemplate(tokenizer)

    def __call__(self, values: Mapping[str, Any]) -> Example:
        """Returns `input_ids` and `labels` of a row."""
        if self._data["prompt_field"] is not None:
            ids, labels = self._answered(values)
        elif isinstance(values.get(self._data["text_field"]), list):
            ids, labels = self._chat(values)
        else:
            ids, labels = self._text(values)
        return {"input_ids": ids[: self._max_len], "labels": labels[: self._max_len]}

    def _text(self, values: Mapping[str, Any]) -> Labeled:
        field = self._data["text_field"]
        ids = self._ids(check_text(values, field)) + self._end()
        if len(ids) < 2:
            raise BadRow(f"{field!r} has fewer than two tokens, so there is nothing to predict")
        return ids, list(ids)

    def _chat(self, values: Mapping[str, Any]) -> Labeled:
        field = self._data["text_field"]
        messages = check_messages(values, field)
        ids, labels = self._render(messages, 0, check_tools(values), field)
        if all(label == IGNORED for label in labels[1 : self._max_len]):
            raise BadRow(
                f"{field!r} has nothing to learn in its first {self._max_len} tokens "
                "(data.max_seq_len): each message there has weight 0"
            )
        return ids, labels

    def _answered(self, values: Mapping[str, Any]) -> Labeled:
        prompt_field = self._data["prompt_field"]
        answer_field = self._data["completion_field"] or "completion"
        if isinstance(values.get(prompt_field), list):
            prompt = check_messages(values, prompt_field)
            answer = check_answer(values, answer_field)
            ids, labels = self._render(
                [*prompt, *answer], len(prompt), check_tools(values), prompt_field
            )
        else:
            text, answer_text = check_text(values, prompt_field), check_text(values, answer_field)
            first = self._ids(text)
            second = self._ids(answer_text, special=False) + self._end()
            ids, labels = first + second, [IGNORED] * len(first) + second
        num_read = next((n for n, label in enumerate(labels) if label != IGNORED), len(labels))
        if num_read >= self._max_len or num_read == len(labels):
            raise BadRow(
                f"the prompt has {num_read} tokens, which leaves none of the "
                f"{self._max_len} of data.max_seq_len for the answer"
            )
        return ids, labels

    def _render(
        self, messages: list[ChatMessage], num_prompt: int, tools: list[Any] | None, field: str
    ) -> Labeled:
        """Returns the tokens of a chat, of which the first messages are the prompt."""
        bare = self._template.prepare(messages, tools, field)

        def ids(some: Sequence[ChatMessage], **more: Any) -> list[int]:
            return self._template.ids(some, tools, **more)

        whole = ids(bare)
        labels = list(whole)
        if num_prompt:
            prompt = ids(bare[:num_prompt], add_generation_prompt=True)
            if whole[: len(prompt)] != prompt:
                raise BadRow("the chat template gives the prompt other tokens once it is answered")
            labels[: len(prompt)] = [IGNORED] * len(prompt)

        def is_only_read(index: int) -> bool:
            return index >= num_prompt and not is_learned(messages[index])

        for start, end in spans(bare, is_only_read, ids, whole):
            labels[start:end] = [IGNORED] * (end - start)
        return whole, labels

    def _ids(self, text: str, *, special: bool = True) -> list[int]:
        ids: list[int] = self._tokenizer(
            text, add_special_tokens=special, return_attention_mask=False, verbose=False
        )["input_ids"]
        end = self._tokenizer.eos_token_id
        return ids[:-1] if ids and ids[-1] == end else ids

    def _end(self) -> list[int]:
        end = self._tokenizer.eos_token_id
        return [] if end is None else [end]


class PairExamples:
    """Makes prompts with a chosen and a rejected answer, for `dpo`."""

    def __init__(self, data: Mapping[str, Any], tokenizer: Any) -> None:
        self._data = data
        self._tokenizer = tokenizer
        self._template = ChatTemplate(tokenizer)

    def __call__(self, values: Mapping[str, Any]) -> Example:
        """Returns `prompt`, `chosen`, `rejected` (texts or messages) and `tools` of a row."""
        data = self._data
        field = data["prompt_field"] or "prompt"
        prompt = check_prompt(values, field)
        answers = {"chosen": data["chosen_field"], "rejected": data["rejected_field"]}
        if isinstance(prompt, list):
            example = self._chats(values, prompt, answers)
            length = len(
                self._template.ids(example["prompt"], example["tools"], add_generation_prompt=True)
            )
        else:
            texts = {name: check_text(values, answer) for name, answer in answers.items()}
            example = {"prompt": prompt, **texts, "tools": None}
            length = len(self._tokenizer(prompt, verbose=False)["input_ids"])
        if example["chosen"] == example["rejected"]:
            raise BadRow("the chosen and the rejected answer are the same")
        if length >= data["max_seq_len"]:
            raise BadRow(
                f"the prompt has {length} tokens, which leaves none of the "
                f"{data['max_seq_len']} of data.max_seq_len for the answers"
            )
        return example

    def _chats(
        self, values: Mapping[str, Any], prompt: list[ChatMessage], answers: Mapping[str, str]
    ) -> Example:
        tools = check_tools(values)
        example: Example = {"tools": tools}
        for name, field in answers.items():
            answer = check_answer(values, field)
            if not all(is_learned(message) for message in answer):
                raise BadRow(f"{field!r} has weight 0, but both answers are learned (remove it)")
            chat = self._template.prepare([*prompt, *answer], tools, "prompt")
            example["prompt"], example[name] = chat[: len(prompt)], chat[len(prompt) :]
        return example


class PromptExamples:
    """Makes prompts with the row's other columns, which the reward function gets, for `grpo`."""

    def __init__(self, data: Mapping[str, Any], tokenizer: Any) -> None:
        self._field = data["prompt_field"] or "prompt"
        self._template = ChatTemplate(tokenizer)

    def __call__(self, values: Mapping[str, Any]) -> Example:
        """Returns `prompt` (text or messages) and all other columns of a row."""
        prompt = check_prompt(values, self._field)
        others = {name: value for name, value in values.items() if name != self._field}
        if "prompt" in others:
            raise BadRow(f"has a column 'prompt' beside {self._field!r} (rename one)")
        if problem := value_problem(others):
            raise BadRow(problem)
        if isinstance(prompt, list):
            tools = check_tools(values)
            prompt = self._template.prepare(prompt, tools, self._field)
            if tools is not None:
                others[TOOLS_FIELD] = tools
        return {"prompt": prompt, **others}


def check_answer(values: Mapping[str, Any], field: str) -> list[ChatMessage]:
    """Returns an answer to a chat, a text or messages, as messages.

    Raises:
        BadRow: It is neither.
    """
    if isinstance(values.get(field), list):
        return check_messages(values, field)
    return [{"role": ASSISTANT, "content": check_text(values, field)}]


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
