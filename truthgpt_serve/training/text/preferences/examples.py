"""Single answers that are good or bad, and answers to compare as token ids."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from truthgpt_serve.training.data.bad_rows import BadRow
from truthgpt_serve.training.data.formats import Sample
from truthgpt_serve.training.text.examples import Example, long_prompt
from truthgpt_serve.training.text.messages import (
    TOOLS_FIELD,
    check_text,
    check_text_or_chat,
    check_tools,
)
from truthgpt_serve.training.text.pairs import PairExamples, check_preferred
from truthgpt_serve.training.text.templates import ChatTemplate


class AnswerExamples:
    """Makes prompts with one answer and whether it is good, for `kto`.

    Args:
        cfg: The whole configuration.
        tokenizer: The model's.
    """

    def __init__(self, cfg: Mapping[str, Any], tokenizer: Any) -> None:
        self._max_len = cfg["data"]["max_seq_len"]
        self._tokenizer = tokenizer
        self._template = ChatTemplate(tokenizer)

    def __call__(self, sample: Sample) -> Example:
        """Returns `prompt`, `completion` (texts or messages), `label` and `tools` of a sample.

        Raises:
            BadRow: It cannot be used.
        """
        values, tools = sample.values, None
        prompt: Any = check_text_or_chat(values.get("prompt"), sample.name("prompt"))
        if not isinstance(values.get("label"), bool):
            raise BadRow(f"{sample.name('label')!r} must be true or false")
        answer_name = sample.name("completion")
        completion: Any
        if isinstance(prompt, list):
            tools = check_tools(values.get(TOOLS_FIELD))
            answer = check_preferred(values.get("completion"), answer_name)
            chat = self._template.prepare([*prompt, *answer], tools, sample.name("prompt"))
            prompt, completion = chat[: len(prompt)], chat[len(prompt) :]
            length = len(self._template.ids(prompt, tools, add_generation_prompt=True))
        else:
            completion = check_text(values.get("completion"), answer_name)
            length = len(self._tokenizer(prompt, verbose=False)["input_ids"])
        if length >= self._max_len:
            raise long_prompt(length, self._max_len)
        label = values["label"]
        return {"prompt": prompt, "completion": completion, "label": label, "tools": tools}


class ComparisonExamples:
    """Makes a prompt with its chosen and with its rejected answer as token ids, for `reward`.

    The ids are those of trl's `RewardTrainer`; what is longer than `data.max_seq_len` is cut.

    Args:
        cfg: The whole configuration.
        tokenizer: The model's.

    Attributes:
        num_cut: Examples that were cut.
    """

    def __init__(self, cfg: Mapping[str, Any], tokenizer: Any) -> None:
        self._max_len = cfg["data"]["max_seq_len"]
        self._tokenizer = tokenizer
        self._template = ChatTemplate(tokenizer)
        self._pairs = PairExamples(cfg, tokenizer)
        self.num_cut = 0

    def __call__(self, sample: Sample) -> Example:
        """Returns `chosen_ids` and `rejected_ids` of a sample.

        Raises:
            BadRow: It cannot be used.
        """
        pair = self._pairs(sample)
        found = {f"{name}_ids": self._ids(pair, name) for name in ("chosen", "rejected")}
        self.num_cut += any(len(ids) > self._max_len for ids in found.values())
        return {name: ids[: self._max_len] for name, ids in found.items()}

    def _ids(self, pair: Example, name: str) -> list[int]:
        prompt, answer = pair["prompt"], pair[name]
        if isinstance(prompt, list):
            return list(self._template.ids([*prompt, *answer], pair["tools"]))
        end = self._tokenizer.eos_token or ""
        text = prompt + answer
        text = text if text.endswith(end) else text + end
        ids: list[int] = self._tokenizer(text, verbose=False)["input_ids"]
        return ids
