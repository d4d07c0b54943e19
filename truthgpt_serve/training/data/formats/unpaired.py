"""Single answers with a label that says whether they are good, for `kto`.

Sources: trl's unpaired preference data, LLaMA-Factory's `kto_tag`. A pair is two such answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from truthgpt_serve.training.data.bad_rows import BadRow
from truthgpt_serve.training.data.formats.alpaca import ALPACA
from truthgpt_serve.training.data.formats.columns import LABELS, need, pick
from truthgpt_serve.training.data.formats.layout import Columns, Format, Sample, Values
from truthgpt_serve.training.data.formats.messages import convert_chat, find_chat
from truthgpt_serve.training.data.formats.preference import PREFERENCE
from truthgpt_serve.training.data.formats.texts import PROMPT_COMPLETION
from truthgpt_serve.training.data.rows import describe

_LABELS = {"true": True, "1": True, "false": False, "0": False}


def _find(values: Values, given: Columns) -> Columns | None:
    label = pick(values, LABELS, given.get("label"))
    if label is None:
        return None
    rest = {k: v for k, v in values.items() if k != label}
    for find in (PROMPT_COMPLETION.find, find_chat, ALPACA.find):
        if found := find(rest, given):
            return {**found, "label": label}
    return None


def _convert(values: Values, columns: Columns, has_template: bool) -> Sequence[Sample]:
    column = columns["label"]
    label = read_label(need(values, column), column)
    if "messages" in columns:
        found = convert_chat(values, columns, has_template)
    elif "instruction" in columns:
        found = ALPACA.convert(values, columns, has_template)
    else:
        found = PROMPT_COMPLETION.convert(values, columns, has_template)
    return [_with_label(sample, label) for sample in found]


def _with_label(sample: Sample, label: bool) -> Sample:
    values = {**sample.values, "label": label}
    if "messages" in values:
        column = sample.name("messages")
        values["prompt"], values["completion"] = split_last(values.pop("messages"), column)
        return Sample(values, {**sample.names, "prompt": column, "completion": column})
    return Sample(values, sample.names)


def split_last(messages: Sequence[Any], column: str) -> tuple[list[Any], list[Any]]:
    """Returns a chat as its prompt and the last turn of the assistant.

    Raises:
        BadRow: The last message is none of the assistant's, or it is the only one.
    """
    last = messages[-1] if messages else None
    if not isinstance(last, Mapping) or last.get("role") != "assistant" or len(messages) < 2:
        raise BadRow(f"{column!r} must end with an answer of the assistant, after a question")
    return list(messages[:-1]), [last]


def read_label(value: Any, column: str) -> bool:
    """Returns a label that is true or false, 1 or 0, or one of these as text.

    Raises:
        BadRow: It is none of them.
    """
    text = str(value).strip().lower() if isinstance(value, str | int) else ""
    if text not in _LABELS:
        found = repr(value[:40]) if isinstance(value, str) else describe(value)
        raise BadRow(f"{column!r} must be true or false, found {found}")
    return _LABELS[text]


def _convert_pair(values: Values, columns: Columns, has_template: bool) -> Sequence[Sample]:
    samples = []
    for sample in PREFERENCE.convert(values, columns, has_template):
        for part, label in (("chosen", True), ("rejected", False)):
            rest = {k: v for k, v in sample.values.items() if k not in ("chosen", "rejected")}
            names = {**sample.names, "completion": sample.name(part)}
            samples.append(
                Sample({**rest, "completion": sample.values[part], "label": label}, names)
            )
    return samples


UNPAIRED = Format(
    "unpaired-preference", "'prompt', 'completion' and 'label' (true or false)", _find, _convert
)
PAIRS_APART = Format(PREFERENCE.name, PREFERENCE.needs, PREFERENCE.find, _convert_pair)
"""Pairs, each as two answers with a label."""
