"""Chat messages of a row, in the form that chat templates and the serving engine know."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from truthgpt_serve.training.data import BadRow
from truthgpt_serve.training.data.rows import describe, text_of, value_problem

ChatMessage = dict[str, Any]
TOOLS_FIELD = "tools"
"""Column with the descriptions of the functions that a chat may call."""
ASSISTANT = "assistant"
_DEPRECATED = ("function_call",)


def check_text(value: Any, name: str) -> str:
    """Returns a text.

    Raises:
        BadRow: It is none.
    """
    text, problem = text_of({name: value}, name)
    if problem:
        raise BadRow(problem)
    return text


def check_text_or_chat(value: Any, name: str) -> str | list[ChatMessage]:
    """Returns a text or chat messages.

    Raises:
        BadRow: It is neither.
    """
    return check_messages(value, name) if isinstance(value, list) else check_text(value, name)


def check_messages(messages: Any, name: str) -> list[ChatMessage]:
    """Returns chat messages.

    A `content` that is null beside `tool_calls` becomes an empty text, and `arguments` that are
    JSON text an object, as the serving engine hands them to the template.

    Raises:
        BadRow: They are none, or one of them is not such a message.
    """
    if not isinstance(messages, list):
        raise BadRow(f"{name!r} must be a list of messages, found {describe(messages)}")
    if not messages:
        raise BadRow(f"{name!r} is empty")
    if problem := value_problem({name: messages}):
        raise BadRow(problem)
    return [_check_message(message, f"{name!r}[{index}]") for index, message in enumerate(messages)]


def _check_message(message: Any, place: str) -> ChatMessage:
    if not isinstance(message, Mapping):
        raise BadRow(f"{place} must be a message (role, content), found {describe(message)}")
    found = {name: value for name, value in message.items() if value is not None}
    if not isinstance(found.get("role"), str):
        raise BadRow(f"{place}.role must be text, found {describe(found.get('role'))}")
    for name in _DEPRECATED:
        if name in found:
            raise BadRow(f"{place}.{name} is not supported (write tool_calls)")
    calls = _check_calls(found.pop("tool_calls", []), found["role"], place)
    if calls:
        found["tool_calls"] = calls
        found.setdefault("content", "")
    found["content"] = _check_content(found.get("content"), place)
    _check_weight(found, place)
    return found


def _check_content(content: Any, place: str) -> str | list[Any]:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise BadRow(f"{place}.content must be text, found {describe(content)}")
    for index, part in enumerate(content):
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind != "text":
            found = repr(kind) if kind is not None else describe(part)
            fix = "a text model learns parts of type 'text'"
            raise BadRow(f"{place}.content[{index}] must be a text part, found {found} ({fix})")
        if not isinstance(part.get("text"), str):
            found = describe(part.get("text"))
            raise BadRow(f"{place}.content[{index}].text must be text, found {found}")
    return content


def _check_weight(message: ChatMessage, place: str) -> None:
    weight = message.get("weight", 1)
    if isinstance(weight, bool) or weight not in (0, 1):
        raise BadRow(f"{place}.weight must be 0 or 1, found {weight!r}")
    if "weight" in message and message["role"] != ASSISTANT:
        raise BadRow(f"{place}.weight is for messages of the assistant (remove it)")


def _check_calls(calls: Any, role: str, place: str) -> list[Any]:
    if not isinstance(calls, list):
        raise BadRow(f"{place}.tool_calls must be a list, found {describe(calls)}")
    if calls and role != ASSISTANT:
        raise BadRow(f"{place}.tool_calls is for messages of the assistant")
    return [_check_call(call, f"{place}.tool_calls[{n}]") for n, call in enumerate(calls)]


def _check_call(call: Any, place: str) -> ChatMessage:
    if not isinstance(call, Mapping):
        raise BadRow(f"{place} must be an object, found {describe(call)}")
    found = {name: value for name, value in call.items() if value is not None}
    if found.get("type", "function") != "function":
        raise BadRow(f"{place}.type must be 'function', found {found['type']!r}")
    if "function" not in found:
        return _check_function(found, place)
    if not isinstance(found["function"], Mapping):
        raise BadRow(f"{place}.function must be an object, found {describe(found['function'])}")
    return {**found, "function": _check_function(found["function"], f"{place}.function")}


def _check_function(function: Mapping[str, Any], place: str) -> ChatMessage:
    name, problem = text_of(function, "name")
    if problem:
        raise BadRow(f"{place}: {problem}")
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError) as error:
            raise BadRow(f"{place}.arguments is not JSON: {error}") from error
    if not isinstance(arguments, Mapping):
        raise BadRow(f"{place}.arguments must be an object, found {describe(arguments)}")
    if problem := value_problem(arguments):
        raise BadRow(f"{place}.arguments: {problem}")
    return {**function, "name": name, "arguments": arguments}


def check_answer(value: Any, name: str) -> list[ChatMessage]:
    """Returns an answer to a chat, a text or messages, as messages.

    Raises:
        BadRow: It is neither, or does not begin with the assistant.
    """
    if not isinstance(value, list):
        return [{"role": ASSISTANT, "content": check_text(value, name)}]
    messages = check_messages(value, name)
    if messages[0]["role"] != ASSISTANT:
        role = messages[0]["role"]
        raise BadRow(f"{name!r} must begin with a message of the assistant, found role {role!r}")
    return messages


def check_tools(tools: Any) -> list[Any] | None:
    """Returns the descriptions of functions that a chat may call, or None.

    Raises:
        BadRow: They are not a list of objects, nor one as JSON text.
    """
    if isinstance(tools, str) and tools.strip():
        try:
            tools = json.loads(tools)
        except (ValueError, RecursionError) as error:
            raise BadRow(f"'{TOOLS_FIELD}' is not JSON: {error}") from error
    if not tools:
        return None
    if not isinstance(tools, list):
        found = repr(tools[:40]) if isinstance(tools, str) else describe(tools)
        raise BadRow(f"'{TOOLS_FIELD}' must be a list, found {found}")
    if problem := value_problem({TOOLS_FIELD: tools}):
        raise BadRow(problem)
    for index, tool in enumerate(tools):
        function = tool.get("function", tool) if isinstance(tool, Mapping) else tool
        if not isinstance(function, Mapping):
            found = describe(function)
            raise BadRow(f"'{TOOLS_FIELD}'[{index}] must describe a function, found {found}")
        if problem := text_of(function, "name")[1]:
            raise BadRow(f"'{TOOLS_FIELD}'[{index}]: {problem}")
    return tools


def is_learned(message: ChatMessage) -> bool:
    """Returns whether a message is to be learned: `weight: 0` says that it is only read."""
    return bool(message.get("weight", 1))
