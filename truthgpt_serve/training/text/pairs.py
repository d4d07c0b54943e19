"""Pairs of answers, and prompts alone: what trl's trainers for preferences and rewards take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from truthgpt_serve.training.data import BadRow
from truthgpt_serve.training.data.formats import Sample
from truthgpt_serve.training.data.rows import value_problem
from truthgpt_serve.training.text.examples import Example, long_prompt
from truthgpt_serve.training.text.messages import (
    ASSISTANT,
    TOOLS_FIELD,
    ChatMessage,
    check_answer,
    check_text,
    check_text_or_chat,
    check_tools,
    is_learned,
)
from truthgpt_serve.training.text.templates import ChatTemplate


class PairExamples:
    """Makes prompts with a chosen and a rejected answer.

    Args:
        cfg: The configuration.
        tokenizer: The model's.
    """

    def __init__(self, cfg: Mapping[str, Any], tokenizer: Any) -> None:
        self._max_len = cfg["data"]["max_seq_len"]
        self._tokenizer = tokenizer
        self._template = ChatTemplate(tokenizer)

    def __call__(self, sample: Sample) -> Example:
        """Returns `prompt`, `chosen`, `rejected` (texts or messages) and `tools` of a sample.

        Raises:
            BadRow: It cannot be used.
        """
        values = sample.values
        prompt = check_text_or_chat(values.get("prompt"), sample.name("prompt"))
        if isinstance(prompt, list):
            example = self._chats(sample, prompt)
            length = len(
                self._template.ids(example["prompt"], example["tools"], add_generation_prompt=True)
            )
        else:
            names = ("chosen", "rejected")
            texts = {name: check_text(values.get(name), sample.name(name)) for name in names}
            example = {"prompt": prompt, **texts, "tools": None}
            length = len(self._tokenizer(prompt, verbose=False)["input_ids"])
        if example["chosen"] == example["rejected"]:
            raise BadRow("the chosen and the rejected answer are the same")
        if length >= self._max_len:
            raise long_prompt(length, self._max_len, "the answers")
        return example

    def _chats(self, sample: Sample, prompt: list[ChatMessage]) -> Example:
        tools = check_tools(sample.values.get(TOOLS_FIELD))
        example: Example = {"tools": tools}
        for part in ("chosen", "rejected"):
            answer = check_preferred(sample.values[part], sample.name(part))
            chat = self._template.prepare([*prompt, *answer], tools, sample.name("prompt"))
            example["prompt"], example[part] = chat[: len(prompt)], chat[len(prompt) :]
        return example


def check_preferred(value: Any, name: str) -> list[ChatMessage]:
    """Returns an answer of which trl learns every message.

    Raises:
        BadRow: It holds what is not to be learned: weight 0, or messages of others.
    """
    answer = check_answer(value, name)
    if not all(is_learned(message) for message in answer):
        raise BadRow(f"{name!r} has weight 0, but both answers are learned (remove it)")
    for message in answer:
        if message["role"] not in (ASSISTANT, "tool"):
            role = message["role"]
            fix = "keep the answer alone, or the turns up to it in the prompt"
            raise BadRow(f"{name!r} has a message of role {role!r}, which would be learned ({fix})")
    return answer


class PromptExamples:
    """Makes prompts with the row's other columns, which the reward function gets.

    Args:
        cfg: The configuration.
        tokenizer: The model's.
    """

    def __init__(self, cfg: Mapping[str, Any], tokenizer: Any) -> None:
        self._template = ChatTemplate(tokenizer)

    def __call__(self, sample: Sample) -> Example:
        """Returns `prompt` (text or messages) and all other columns of a sample.

        Raises:
            BadRow: It cannot be used.
        """
        name = sample.name("prompt")
        prompt = check_text_or_chat(sample.values.get("prompt"), name)
        others = {part: value for part, value in sample.values.items() if part != "prompt"}
        if problem := value_problem(others):
            raise BadRow(problem)
        if isinstance(prompt, list):
            tools = check_tools(others.get(TOOLS_FIELD))
            prompt = self._template.prepare(prompt, tools, name)
            if tools is not None:
                others[TOOLS_FIELD] = tools
        return {"prompt": prompt, **others}
