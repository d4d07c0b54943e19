"""Chats: OpenAI's `messages` (role, content) and ShareGPT's `conversations` (from, value).

Sources: OpenAI's chat fine-tuning format; the data pages of LLaMA-Factory (`sharegpt`) and of
Axolotl (`chat_template`), whose names of roles are read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from truthgpt_serve.training.data.bad_rows import BadRow
from truthgpt_serve.training.data.formats.columns import (
    CHATS,
    SYSTEMS,
    TOOLS,
    from_json,
    is_chat,
    need,
    optional_text,
    pick,
    tools_of,
    with_optional,
)
from truthgpt_serve.training.data.formats.layout import Columns, Format, Sample, Values
from truthgpt_serve.training.data.rows import describe

ROLES: dict[str, str] = {
    **dict.fromkeys(("human",), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bing", "bard", "bot"), "assistant"),
    **dict.fromkeys(("observation", "function_response", "tool_response"), "tool"),
}
"""Names of roles that no chat template knows, and those that templates know them by."""
CALL = "function_call"
"""The role of a ShareGPT message whose value is the call of a function, as JSON."""
Message = dict[str, Any]


def read_chat(value: Any, column: str) -> list[Any]:
    """Returns the messages of a column with OpenAI's keys; of other values they stay as they are.

    Raises:
        BadRow: There is no list of them, or one of ShareGPT's form cannot be told.
    """
    messages = from_json(value)
    if not isinstance(messages, list):
        raise BadRow(f"{column!r} must be a list of messages, found {describe(value)}")
    if not messages:
        raise BadRow(f"{column!r} is empty")
    calls = _Calls()
    return [
        calls.follow(_message(message, f"{column!r}[{index}]"), message)
        if isinstance(message, Mapping)
        else message
        for index, message in enumerate(messages)
    ]


def _message(message: Mapping[str, Any], place: str) -> Message:
    is_sharegpt = message.get("role") is None and "from" in message
    if not is_sharegpt:
        found = dict(message)
    else:
        if not isinstance(message["from"], str):
            raise BadRow(f"{place}.from must be text, found {describe(message['from'])}")
        content = message.get("value", message.get("content"))
        more = {k: v for k, v in message.items() if k not in ("from", "value", "role")}
        found = {**more, "role": message["from"], "content": content}
    role = found.get("role")
    if not isinstance(role, str):
        return found
    if role == CALL:
        key = "value" if is_sharegpt else "content"
        return _called(found, f"{place}.{key}")
    if is_sharegpt and not isinstance(found["content"], str) and not found.get("tool_calls"):
        raise BadRow(f"{place}.value must be text, found {describe(found['content'])}")
    return {**found, "role": ROLES.get(role, role)}


def _called(message: Message, place: str) -> Message:
    calls = from_json(message.get("content"))
    calls = [calls] if isinstance(calls, Mapping) else calls
    is_calls = isinstance(calls, list) and all(
        isinstance(call, Mapping) and isinstance(call.get("name"), str) for call in calls
    )
    if not calls or not is_calls:
        raise BadRow(f"{place} must be JSON of a function call: an object with name and arguments")
    functions = [
        {"name": call["name"], "arguments": call.get("arguments", call.get("parameters"))}
        for call in calls
    ]
    wrapped = [{"type": "function", "function": function} for function in functions]
    return {**message, "role": "assistant", "content": None, "tool_calls": wrapped}


class _Calls:
    """Gives calls of ShareGPT's form the ids that templates ask for, and their answers the same."""

    def __init__(self) -> None:
        self._number = 0
        self._open: list[tuple[str, str]] = []

    def follow(self, message: Message, source: Mapping[str, Any]) -> Message:
        """Returns the next message of the chat."""
        if CALL in (source.get("from"), source.get("role")):
            self._open = []
            for call in message["tool_calls"]:
                call["id"] = f"call{self._number:05}"  # nine characters, as Mistral's ids have
                self._number += 1
                self._open.append((call["id"], call["function"]["name"]))
        elif message.get("role") == "tool" and self._open and "tool_call_id" not in message:
            call_id, name = self._open.pop(0)
            return {"name": name, **message, "tool_call_id": call_id}
        return message


def with_system(messages: list[Any], values: Values, columns: Columns) -> list[Any]:
    """Returns a chat with the system message of its own column, unless it has one itself."""
    system = optional_text(values, columns, "system")
    has_one = isinstance(messages[0], Mapping) and messages[0].get("role") == "system"
    if not system.strip() or has_one:
        return messages
    return [{"role": "system", "content": system}, *messages]


def find_chat(values: Values, given: Columns) -> Columns | None:
    """Returns the column with a chat, and those of its system message and its functions."""
    names = [name for name in CHATS if name in values]
    if isinstance(values.get("text"), list) or is_chat(values.get("text")):
        names.append("text")
    if column := pick(values, names, given.get("text")):
        return with_optional(values, {"messages": column}, system=SYSTEMS, tools=TOOLS)
    return None


def convert_chat(values: Values, columns: Columns, has_template: bool) -> Sequence[Sample]:
    """Returns the chat of a row."""
    column = columns["messages"]
    messages = with_system(read_chat(need(values, column), column), values, columns)
    return [Sample({"messages": messages, **tools_of(values, columns)}, dict(columns))]


def _is_sharegpt(values: Values, columns: Columns) -> bool:
    messages = from_json(values[columns["messages"]])
    first = messages[0] if isinstance(messages, list) and messages else None
    return isinstance(first, Mapping) and "from" in first


def _find_messages(values: Values, given: Columns) -> Columns | None:
    found = find_chat(values, given)
    return found if found is None or not _is_sharegpt(values, found) else None


def _find_sharegpt(values: Values, given: Columns) -> Columns | None:
    found = find_chat(values, given)
    return found if found is not None and _is_sharegpt(values, found) else None


MESSAGES = Format(
    "messages",
    "'messages' (role, content)",
    _find_messages,
    convert_chat,
)
SHAREGPT = Format(
    "sharegpt",
    "'conversations' (from, value)",
    _find_sharegpt,
    convert_chat,
)
