"""The messages of a chat request, read and checked field by field.

What a message says reaches the chat template or is refused; `IGNORED` lists the few fields that say
nothing to a model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from truthgpt_serve.errors import UnsupportedError
from truthgpt_serve.http.json_body import bad_field, kind_of, shown

ROLES = ("assistant", "developer", "function", "system", "tool", "user")
IGNORED = {
    "annotations": "where an answer's text comes from",
    "weight": "how much an answer counts in training",
    "cache_control": "what an engine may keep",
}
"""Fields that a message, or a part of its content, may have and that no model reads, and what they
are about."""
THOUGHTS = ("reasoning_content", "reasoning")
"""What the model thought before it answered: for templates that know the field, else ignored."""
MAX_TOOL_CALLS = 128
ChatMessage = dict[str, Any]


def read_messages(value: Any) -> list[ChatMessage]:
    """Returns the messages as chat templates take them.

    The content is one text. Arguments of tool calls are as the client wrote them. The old
    `function_call` becomes a tool call, and the role `function` becomes `tool`.

    Raises:
        RequestError: A message is malformed.
        UnsupportedError: A message has what a text model does not take.
    """
    if value is None:
        raise bad_field("messages", "is required")
    if not isinstance(value, list):
        raise bad_field("messages", f"must be a list, not {shown(value)}")
    if not value:
        raise bad_field("messages", "must hold at least one message")
    return [_message(item, f"messages[{index}]") for index, item in enumerate(value)]


def _message(item: Any, place: str) -> ChatMessage:
    if not isinstance(item, dict):
        raise bad_field(place, f"must be an object, not {shown(item)}")
    role = item.get("role")
    if role not in ROLES:
        raise bad_field(f"{place}.role", f"must be one of {', '.join(ROLES)}, not {shown(role)}")
    message: ChatMessage = {"role": "tool" if role == "function" else role}
    message["content"] = _content(item, role, place)
    for name in item.keys() - {"role", "content", "refusal"}:
        if item[name] is None:
            continue
        reader = _READERS.get(name)
        if reader is None:
            raise UnsupportedError(
                f"`{place}.{name}` is not a field that this model takes; leave it out",
                param=f"{place}.{name}",
            )
        reader(item[name], message, f"{place}.{name}")
    return message


def _content(item: ChatMessage, role: str, place: str) -> str:
    content, refusal = item.get("content"), item.get("refusal")
    if refusal is not None:
        _require(refusal, str, f"{place}.refusal", "a string")
        _only_assistant({"role": role}, f"{place}.refusal")
    if content is None and role == "assistant":
        return refusal or ""
    if isinstance(content, str):
        text = content
    elif isinstance(content, list):
        parts = [_part(part, f"{place}.content[{index}]") for index, part in enumerate(content)]
        text = "".join(parts)
    else:
        message = f"must be a string or a list of parts, not {shown(content)}"
        raise bad_field(f"{place}.content", message)
    return f"{text}\n{refusal}" if text and refusal else text or refusal or ""


def _part(part: Any, place: str) -> str:
    if not isinstance(part, dict):
        raise bad_field(place, f"must be an object, not {shown(part)}")
    kind = part.get("type")
    if kind not in ("text", "refusal"):
        raise UnsupportedError(
            f"`{place}.type` is {shown(kind)}: this model takes text parts only",
            param=f"{place}.type",
        )
    for name in part.keys() - {"type", kind} - IGNORED.keys():
        if part[name] is not None:
            raise UnsupportedError(
                f"`{place}.{name}` is not a field that this model takes; leave it out",
                param=f"{place}.{name}",
            )
    text = part.get(kind)
    if not isinstance(text, str):
        raise bad_field(f"{place}.{kind}", f"must be a string, not {shown(text)}")
    return text


# -- the other fields: each writes what the template takes into the message


def _read_text(value: Any, message: ChatMessage, place: str) -> None:
    message[place.rpartition(".")[2]] = _require(value, str, place, "a string")


def _read_thoughts(value: Any, message: ChatMessage, place: str) -> None:
    _only_assistant(message, place)
    _read_text(value, message, place)


def _read_tool_call_id(value: Any, message: ChatMessage, place: str) -> None:
    if message["role"] != "tool":
        raise bad_field(place, "belongs to messages with the role tool")
    _read_text(value, message, place)


def _read_tool_calls(value: Any, message: ChatMessage, place: str) -> None:
    _only_assistant(message, place)
    calls = _require(value, list, place, "a list")
    if len(calls) > MAX_TOOL_CALLS:
        raise bad_field(place, f"may hold at most {MAX_TOOL_CALLS} calls, not {len(calls)}")
    read = [_tool_call(call, f"{place}[{index}]") for index, call in enumerate(calls)]
    if read:
        message["tool_calls"] = [*message.get("tool_calls", []), *read]


def _tool_call(call: Any, place: str) -> dict[str, Any]:
    _require(call, dict, place, "an object")
    kind = call.get("type", "function")
    if kind != "function":
        raise UnsupportedError(
            f"`{place}.type` is {shown(kind)}: this model takes calls of functions only",
            param=f"{place}.type",
        )
    known = {"id", "type", "function", "index"}
    if unknown := [name for name in call if name not in known and call[name] is not None]:
        raise UnsupportedError(
            f"`{place}.{unknown[0]}` is not a field that this model takes; leave it out",
            param=f"{place}.{unknown[0]}",
        )
    read: dict[str, Any] = {"type": "function"}
    if call.get("id") is not None:
        read["id"] = _require(call["id"], str, f"{place}.id", "a string")
    read["function"] = _function(call.get("function"), f"{place}.function")
    return read


def _function(value: Any, place: str) -> dict[str, Any]:
    _require(value, dict, place, "an object")
    name = _require(value.get("name"), str, f"{place}.name", "a string")
    if not name:
        raise bad_field(f"{place}.name", "must not be empty")
    arguments = value.get("arguments")
    arguments = "" if arguments is None else arguments
    return {"name": name, "arguments": _require(arguments, str | dict, f"{place}.arguments", _JSON)}


def _read_function_call(value: Any, message: ChatMessage, place: str) -> None:
    _only_assistant(message, place)
    call = {"type": "function", "function": _function(value, place)}
    message["tool_calls"] = [*message.get("tool_calls", []), call]


def _ignore(value: Any, message: ChatMessage, place: str) -> None:
    """Leaves a field out that says nothing to a model."""


def _only_assistant(message: ChatMessage, place: str) -> None:
    if message["role"] != "assistant":
        raise bad_field(place, "belongs to messages with the role assistant")


def _require(value: Any, kind: Any, place: str, wanted: str) -> Any:
    if not isinstance(value, kind):
        raise bad_field(place, f"must be {wanted}, not {kind_of(value)}")
    return value


def parse_arguments(message: ChatMessage) -> ChatMessage:
    """Returns a message whose tool calls have their arguments as objects, as most templates want.

    A text that is no JSON object stays a text: it is what the model once wrote.
    """
    return _with_arguments(message, _as_object)


def dump_arguments(message: ChatMessage) -> ChatMessage:
    """Returns a message whose tool calls have their arguments as JSON texts."""
    return _with_arguments(message, _as_text)


def _with_arguments(message: ChatMessage, change: Callable[[Any], Any]) -> ChatMessage:
    if "tool_calls" not in message:
        return message
    calls = []
    for call in message["tool_calls"]:
        function = {**call["function"], "arguments": change(call["function"]["arguments"])}
        calls.append({**call, "function": function})
    return {**message, "tool_calls": calls}


def _as_object(arguments: Any) -> Any:
    if isinstance(arguments, dict):
        return arguments
    if not arguments.strip():
        return {}
    try:
        value = msgspec.json.decode(arguments)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return arguments
    return value if isinstance(value, dict) else arguments


def _as_text(arguments: Any) -> str:
    if isinstance(arguments, str):
        return arguments or "{}"
    return msgspec.json.encode(arguments).decode()


_JSON = "a JSON text or an object"
_READERS: dict[str, Callable[[Any, ChatMessage, str], None]] = {
    "name": _read_text,
    "tool_calls": _read_tool_calls,
    "tool_call_id": _read_tool_call_id,
    "function_call": _read_function_call,
    **dict.fromkeys(THOUGHTS, _read_thoughts),
    **dict.fromkeys(IGNORED, _ignore),
}
