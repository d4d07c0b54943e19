"""Pairs of a better and a worse answer, and single answers with a label.

Sources: trl's data set types (preference, unpaired preference, implicit prompts), LLaMA-Factory's
ranking and KTO data, OpenAI's preference fine-tuning format, UltraFeedback (binarized).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from truthgpt_serve.training.data.bad_rows import BadRow
from truthgpt_serve.training.data.formats.alpaca import find_question, names_of, question_of
from truthgpt_serve.training.data.formats.columns import (
    SYSTEMS,
    TOOLS,
    from_json,
    is_message,
    need,
    pick,
    text_or_chat,
    tools_of,
    with_optional,
)
from truthgpt_serve.training.data.formats.implicit import extract_prompt
from truthgpt_serve.training.data.formats.layout import Columns, Format, Sample, Values
from truthgpt_serve.training.data.formats.messages import find_chat, read_chat, with_system
from truthgpt_serve.training.data.rows import describe

BETTER = ("chosen", "preferred_output", "chosen_response")
WORSE = ("rejected", "non_preferred_output", "rejected_response")


def _find(values: Values, given: Columns) -> Columns | None:
    chosen = pick(values, BETTER, given.get("chosen"))
    rejected = pick(values, WORSE, given.get("rejected"))
    if not chosen or not rejected:
        return None
    found: Columns = {"chosen": chosen, "rejected": rejected}
    rest = {k: v for k, v in values.items() if k not in (chosen, rejected)}
    return {**_find_prompt(rest, given), **found}


def _find_prompt(values: Values, given: Columns) -> Columns:
    if "prompt" in given or "prompt" in values:
        prompt = pick(values, ("prompt",), given.get("prompt")) or given.get("prompt", "prompt")
        return with_optional(values, {"prompt": prompt}, system=SYSTEMS, tools=TOOLS)
    if "conversations" in values and (chat := find_chat(values, {})):
        return {**chat, "prompt": chat["messages"]}
    if "input" in values and isinstance(from_json(values["input"]), Mapping):
        return {"openai": "input", "prompt": "input"}
    question = find_question(values, {})
    return with_optional(values, {}, system=SYSTEMS, tools=TOOLS) if question is None else question


def _convert(values: Values, columns: Columns, has_template: bool) -> Sequence[Sample]:
    answers = {part: _answer(values, columns[part]) for part in ("chosen", "rejected")}
    prompt, tools = _prompt(values, columns, has_template)
    prompt, answers = _settle(prompt, answers, columns)
    if isinstance(prompt, list):
        prompt = with_system(prompt, values, columns)
    names = names_of(columns) if "instruction" in columns else columns
    names = {"prompt": columns["chosen"], **names}
    return [Sample({"prompt": prompt, **answers, **tools}, names)]


def _answer(values: Values, column: str) -> Any:
    """Returns an answer: messages, or a text."""
    value = text_or_chat(need(values, column))
    if is_message(from_json(value)):
        value = [from_json(value)]
    return read_chat(value, column) if isinstance(value, list) else value


def _prompt(values: Values, columns: Columns, has_template: bool) -> tuple[Any, dict[str, Any]]:
    if "openai" in columns:
        given = from_json(need(values, columns["openai"]))
        if not isinstance(given, Mapping):
            raise BadRow(f"{columns['openai']!r} must be an object, found {describe(given)}")
        return read_chat(given.get("messages"), f"{columns['openai']}.messages"), dict(
            tools_of(given, {"tools": "tools"})
        )
    tools = tools_of(values, columns)
    if "instruction" in columns:
        return question_of(values, columns, has_template), tools
    if "prompt" not in columns:
        return None, tools
    value = text_or_chat(need(values, columns["prompt"]))
    if isinstance(value, list) or "messages" in columns:
        return read_chat(value, columns["prompt"]), tools
    return value, tools


def _settle(prompt: Any, answers: dict[str, Any], columns: Columns) -> tuple[Any, dict[str, Any]]:
    """Returns a prompt and answers that do not repeat it, all of them texts or messages."""
    are_chats = [isinstance(answer, list) for answer in answers.values()]
    if isinstance(prompt, list):
        length = len(prompt)
        if all(are_chats) and all(
            answer[:length] == prompt and len(answer) > length for answer in answers.values()
        ):
            answers = {part: answer[length:] for part, answer in answers.items()}
        return prompt, answers
    if all(are_chats):
        # Whole chats hold their prompt, whatever a column of that name repeats.
        shared, rest = extract_prompt(answers["chosen"], answers["rejected"])
        if shared:
            return shared, rest
    if prompt is None:
        return _implicit(answers, columns)
    if isinstance(prompt, str) and any(are_chats):
        prompt = [{"role": "user", "content": prompt}]
    return prompt, answers


def _implicit(answers: dict[str, Any], columns: Columns) -> tuple[str, dict[str, Any]]:
    if "prompt" in columns:
        raise BadRow(f"{columns['prompt']!r} must be text, found nothing")
    place = f"{columns['chosen']!r} and {columns['rejected']!r}"
    for part, answer in answers.items():
        if isinstance(answer, list):
            raise BadRow(f"{place} share no first message that could be the prompt")
        if not isinstance(answer, str):
            raise BadRow(f"{columns[part]!r} must be text, found {describe(answer)}")
    shared, rest = extract_prompt(answers["chosen"], answers["rejected"])
    if not shared.strip():
        raise BadRow(f"{place} share no beginning that could be the prompt")
    return shared, rest


PREFERENCE = Format("preference", "'chosen' and 'rejected'", _find, _convert)
