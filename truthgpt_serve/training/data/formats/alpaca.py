"""Questions with answers: Alpaca's columns, and others of the same meaning.

Sources: LLaMA-Factory's data page (`alpaca`: instruction, input, output, system, history), and
Stanford Alpaca's prompt for models without a chat template.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from truthgpt_serve.training.data.bad_rows import BadRow
from truthgpt_serve.training.data.formats.columns import (
    ANSWERS,
    INPUTS,
    QUESTIONS,
    SYSTEMS,
    TOOLS,
    from_json,
    optional_text,
    pick,
    tools_of,
    with_optional,
)
from truthgpt_serve.training.data.formats.layout import Columns, Format, Sample, Values
from truthgpt_serve.training.data.rows import describe, text_of

_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
_WITHOUT_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\n{instruction}\n\n### Response:\n"
)


def find_question(values: Values, given: Columns) -> Columns | None:
    """Returns the columns of a question: instruction, input, system, history, tools."""
    if question := pick(values, QUESTIONS, given.get("prompt")):
        found = {"instruction": question}
        more = {"input": INPUTS, "system": SYSTEMS, "history": ("history",), "tools": TOOLS}
        return with_optional(values, found, **more)
    return None


def _find(values: Values, given: Columns) -> Columns | None:
    answer = pick(values, ANSWERS, given.get("completion"))
    question = find_question({k: v for k, v in values.items() if k != answer}, given)
    return {**question, "output": answer} if answer and question else None


def question_of(values: Values, columns: Columns, has_template: bool) -> str | list[Any]:
    """Returns a question: messages that end with the user's, or Stanford's prompt as a text.

    Raises:
        BadRow: There is none, or the model has no chat template for what is more than that.
    """
    instruction, problem = text_of(values, columns["instruction"])
    if problem:
        raise BadRow(problem)
    more = optional_text(values, columns, "input")
    system, history = optional_text(values, columns, "system"), _history(values, columns)
    if not has_template:
        if system.strip() or history:
            column = columns["system"] if system.strip() else columns["history"]
            raise BadRow(f"{column!r} needs a chat template, and the model's tokenizer has none")
        form = _WITH_INPUT if more.strip() else _WITHOUT_INPUT
        return form.format(instruction=instruction, input=more)
    content = f"{instruction}\n{more}" if more.strip() else instruction
    start = [{"role": "system", "content": system}] if system.strip() else []
    return [*start, *history, {"role": "user", "content": content}]


def _history(values: Values, columns: Columns) -> list[Any]:
    turns = from_json(values.get(columns["history"])) if "history" in columns else None
    if not turns:
        return []
    column, found = columns["history"], []
    if not isinstance(turns, list):
        raise BadRow(f"{column!r} must be a list of turns, found {describe(turns)}")
    for index, turn in enumerate(turns):
        if not (isinstance(turn, list | tuple) and len(turn) == 2):
            raise BadRow(f"{column!r}[{index}] must be a list of a question and its answer")
        found += [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]}]
    return found


def names_of(columns: Columns) -> Columns:
    """Returns the column of each part of an example, for messages of errors."""
    prompt = columns["instruction"]
    return {**columns, "prompt": prompt, "messages": prompt}


def _convert(values: Values, columns: Columns, has_template: bool) -> Sequence[Sample]:
    prompt = question_of(values, columns, has_template)
    answer, problem = text_of(values, columns["output"])
    if problem:
        raise BadRow(problem)
    names = {**names_of(columns), "completion": columns["output"]}
    tools = tools_of(values, columns)
    if isinstance(prompt, str):
        return [Sample({"prompt": prompt, "completion": answer, **tools}, names)]
    messages = [*prompt, {"role": "assistant", "content": answer}]
    return [Sample({"messages": messages, **tools}, names)]


ALPACA = Format("alpaca", "'instruction' and 'output'", _find, _convert)
