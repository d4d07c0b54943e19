"""Recognizes the format of a data set by the columns of a row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from truthgpt_serve.training.data.bad_rows import BadRow
from truthgpt_serve.training.data.formats.alpaca import ALPACA
from truthgpt_serve.training.data.formats.layout import Columns, Format, Layout, Values
from truthgpt_serve.training.data.formats.messages import MESSAGES, SHAREGPT
from truthgpt_serve.training.data.formats.preference import PREFERENCE
from truthgpt_serve.training.data.formats.prompts import PROMPT_ONLY
from truthgpt_serve.training.data.formats.sentences import LABELED, PAIRS
from truthgpt_serve.training.data.formats.texts import PROMPT_COMPLETION, TEXT
from truthgpt_serve.training.data.formats.unpaired import PAIRS_APART, UNPAIRED
from truthgpt_serve.training.data.rows import Row, columns_of, without_nulls
from truthgpt_serve.training.errors import TrainingError

AUTO = "auto"
_PAIRED = (PREFERENCE,)
_FORMATS: dict[str, tuple[Format, ...]] = {
    "sft": (MESSAGES, SHAREGPT, PROMPT_COMPLETION, ALPACA, TEXT),
    "dpo": _PAIRED,
    "orpo": _PAIRED,
    "reward": _PAIRED,
    "kto": (UNPAIRED, PAIRS_APART),
    "grpo": (PROMPT_ONLY,),
    "ppo": (PROMPT_ONLY,),
    "embedding": (PAIRS,),
    "classification": (LABELED,),
}
"""The formats of each method; of those that fit, `auto` takes the first."""
_GIVEN = {
    "text_field": "text",
    "prompt_field": "prompt",
    "completion_field": "completion",
    "chosen_field": "chosen",
    "rejected_field": "rejected",
    "label_field": "label",
}
_KEYS = {
    "sft": "data.text_field, or data.prompt_field and completion_field",
    "kto": "data.prompt_field, completion_field and label_field",
    "classification": "data.text_field and label_field",
    **dict.fromkeys(("dpo", "orpo", "reward"), "data.prompt_field, chosen_field, rejected_field"),
    **dict.fromkeys(("grpo", "ppo"), "data.prompt_field"),
    "embedding": "data.label_field for the score",
}


def formats_of(method: str) -> list[str]:
    """Returns the names of the formats that a method learns from."""
    return [one.name for one in _FORMATS[method]]


def recognize(row: Row, data: Mapping[str, Any], method: str, *, has_template: bool) -> Layout:
    """Returns how the rows of a data set are read, by the columns of one of them.

    Args:
        row: Its columns that are null count as missing unless nothing else fits.
        data: The `data` section: its `format`, and the columns that its keys name.
        method: `training.method`.
        has_template: Whether the model has a chat template.

    Raises:
        BadRow: No format fits; names the columns and the fix.
        TrainingError: `data.format` is none of the method's.
    """
    wanted = data.get("format", AUTO)
    candidates = _candidates(wanted, method)
    given = {part: data[key] for key, part in _GIVEN.items() if data.get(key) is not None}
    if wanted == AUTO and method == "sft":
        candidates = _named(candidates, given)
    values = row.values
    if row.fills_nulls:
        values = {name: without_nulls(value) for name, value in values.items()}
    full = {name: value for name, value in values.items() if value is not None}
    for some in (full, values):
        found = [(one, columns) for one in candidates if (columns := one.find(some, given))]
        if found:
            chosen, columns = found[0]
            return Layout(
                chosen,
                {**(chosen.find(values, given) or {}), **columns},
                given,
                is_given=wanted != AUTO,
                others=list({one.name: 0 for one, _ in found if one.name != chosen.name}),
                has_template=has_template,
            )
    raise BadRow(_problem(candidates, values, given, wanted, method))


def _candidates(wanted: str, method: str) -> tuple[Format, ...]:
    formats = _FORMATS[method]
    if wanted == AUTO:
        return formats
    chosen = tuple(one for one in formats if one.name == wanted)
    if not chosen:
        known = ", ".join(formats_of(method))
        message = f"data.format: {wanted} is not for training.method: {method}"
        raise TrainingError(f"{message} (write auto or one of: {known})")
    return chosen


def _named(candidates: tuple[Format, ...], given: Columns) -> tuple[Format, ...]:
    """Returns the formats whose columns the configuration names: they win over others."""
    if "prompt" in given:
        return (PROMPT_COMPLETION,)
    return (TEXT,) if "text" in given else candidates


def _problem(
    candidates: tuple[Format, ...], values: Values, given: Columns, wanted: str, method: str
) -> str:
    keys = [key for key, part in _GIVEN.items() if part in given]
    for key in keys:
        if given[_GIVEN[key]] not in values:
            column = given[_GIVEN[key]]
            return f"has no {column!r} column (it has {columns_of(values)}), which data.{key} names"
    needed = ", or ".join(one.needs for one in candidates)
    what = f"data.format: {wanted} needs" if wanted != AUTO else f"{method} needs"
    fix = f"rename them, or name them: {_KEYS.get(method, 'data.text_field')}"
    if wanted != AUTO:
        fix = f"correct data.format; {fix}"
    return f"has the columns {columns_of(values)}; {what} {needed} ({fix})"
