"""From rows to what a text model learns: token ids with labels, pairs of answers, or prompts.

Knows the columns that `data` names and the tokenizer, no file and no trainer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from jinja2.exceptions import TemplateError

from truthgpt_serve.training.data.rows import describe, text_of

IGNORED = -100
"""The label of a token that is read but not learnt, in PyTorch's cross entropy."""
Example = dict[str, Any]


class BadRow(Exception):
    """A row that cannot be used; its message is the problem."""


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

    def __call__(self, values: Mapping[str, Any]) -> Example:
        """Returns `input_ids` and `labels` of a row."""
        if self._data["prompt_field"] is None:
            ids = self._whole(values)[: self._max_len]
            return {"input_ids": ids, "labels": list(ids)}
        prompt, answer = self._parts(values)
        if len(prompt) >= self._max_len:
            raise BadRow(
                f"the prompt has {len(prompt)} tokens, which leaves none of the "
                f"{self._max_len} of data.max_seq_len for the answer"
            )
        ids = (prompt + answer)[: self._max_len]
        return {"input_ids": ids, "labels": [IGNORED] * len(prompt) + ids[len(prompt) :]}

    def _whole(self, values: Mapping[str, Any]) -> list[int]:
        field = self._data["text_field"]
        if isinstance(values.get(field), list):
            return self._template(check_messages(values, field))
        ids = self._ids(check_text(values, field)) + self._end()
        if len(ids) < 2:
            raise BadRow(f"{field!r} has fewer than two tokens, so there is nothing to predict")
        return ids

    def _parts(self, values: Mapping[str, Any]) -> tuple[list[int], list[int]]:
        prompt_field = self._data["prompt_field"]
        answer = check_text(values, self._data["completion_field"] or "completion")
        if isinstance(values.get(prompt_field), list):
            messages = check_messages(values, prompt_field)
            prompt = self._template(messages, add_generation_prompt=True)
            whole = self._template([*messages, {"role": "assistant", "content": answer}])
            if whole[: len(prompt)] != prompt:
                raise BadRow("the chat template gives the prompt other tokens once it is answered")
            return prompt, whole[len(prompt) :]
        prompt = self._ids(check_text(values, prompt_field))
        return prompt, self._ids(answer, special=False) + self._end()

    def _ids(self, text: str, *, special: bool = True) -> list[int]:
        ids: list[int] = self._tokenizer(
            text, add_special_tokens=special, return_attention_mask=False, verbose=False
        )["input_ids"]
        end = self._tokenizer.eos_token_id
        return ids[:-1] if ids and ids[-1] == end else ids

    def _end(self) -> list[int]:
        end = self._tokenizer.eos_token_id
        return [] if end is None else [end]

    def _template(self, messages: list[dict[str, Any]], **more: Any) -> list[int]:
        try:
            ids: list[int] = self._tokenizer.apply_chat_template(
                messages, tokenize=True, return_dict=False, **more
            )
        except (TemplateError, ValueError, TypeError) as error:
            raise BadRow(f"the chat template refuses it: {error}") from error
        return ids


class PairExamples:
    """Makes prompts with a chosen and a rejected answer, for `dpo`."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        self._data = data

    def __call__(self, values: Mapping[str, Any]) -> Example:
        """Returns `prompt` (text or messages), `chosen` and `rejected` of a row."""
        data = self._data
        prompt = check_prompt(values, data["prompt_field"] or "prompt")
        answers = {
            "chosen": check_text(values, data["chosen_field"]),
            "rejected": check_text(values, data["rejected_field"]),
        }
        if answers["chosen"] == answers["rejected"]:
            raise BadRow("the chosen and the rejected answer are the same")
        if isinstance(prompt, list):
            return {
                "prompt": prompt,
                **{k: [{"role": "assistant", "content": v}] for k, v in answers.items()},
            }
        return {"prompt": prompt, **answers}


class PromptExamples:
    """Makes prompts with the row's other columns, which the reward function gets, for `grpo`."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        self._field = data["prompt_field"] or "prompt"

    def __call__(self, values: Mapping[str, Any]) -> Example:
        """Returns `prompt` (text or messages) and all other columns of a row."""
        prompt = check_prompt(values, self._field)
        return {"prompt": prompt, **{k: v for k, v in values.items() if k != self._field}}


def check_text(values: Mapping[str, Any], field: str) -> str:
    """Returns the text of a column.

    Raises:
        BadRow: It has none.
    """
    text, problem = text_of(values, field)
    if problem:
        raise BadRow(problem)
    return text


def check_prompt(values: Mapping[str, Any], field: str) -> str | list[dict[str, Any]]:
    """Returns the text or the chat messages of a column.

    Raises:
        BadRow: It has neither.
    """
    if isinstance(values.get(field), list):
        return check_messages(values, field)
    return check_text(values, field)


def check_messages(values: Mapping[str, Any], field: str) -> list[dict[str, Any]]:
    """Returns the chat messages of a column.

    Raises:
        BadRow: They are none, or one of them has no `role` and `content` of text.
    """
    messages = values[field]
    if not messages:
        raise BadRow(f"{field!r} is empty")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            found = describe(message)
            raise BadRow(f"{field!r}[{index}] must be a message (role, content), found {found}")
        for key in ("role", "content"):
            if not isinstance(message.get(key), str):
                found = describe(message.get(key))
                raise BadRow(f"{field!r}[{index}].{key} must be text, found {found}")
    return [{"role": message["role"], "content": message["content"]} for message in messages]


class Packer:
    """Joins texts to rows of exactly `length` tokens; a rest at the end is left out."""

    def __init__(self, length: int) -> None:
        self._length = length
        self._ids: list[int] = []

    def __call__(self, example: Example) -> Iterator[Example]:
        """Takes the tokens of one text and yields the rows that are full."""
        self._ids += example["input_ids"]
        while len(self._ids) >= self._length:
            row, self._ids = self._ids[: self._length], self._ids[self._length :]
            yield {"input_ids": row, "labels": list(row)}
