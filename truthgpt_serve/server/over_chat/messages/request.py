"""A request for Anthropic's Messages API as one for the chat route."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import Any

from truthgpt_serve.http.json_body import encode_json
from truthgpt_serve.request_schema import bad_field
from truthgpt_serve.server.over_chat.field_names import noted, noted_as
from truthgpt_serve.server.over_chat.fields import (
    choice_at,
    given_at,
    list_at,
    object_at,
    picked,
    text_at,
    unsupported_at,
)
from truthgpt_serve.server.over_chat.messages.thinking import (
    TEMPLATE,
    Think,
    no_effect,
    thinking_fields,
)

Chat = dict[str, Any]
_SAME = ("model", "max_tokens", "stream", "temperature", "top_p", "top_k")
_SKIPPED = frozenset(("redacted_thinking",))
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


def chat_of_message(body: Mapping[str, Any], think: Think = no_effect) -> Chat:
    """Returns the chat request.

    Args:
        body: The request.
        think: Returns the fields by which the model is told of thoughts.

    Raises:
        RequestError: A field is missing or wrong.
        UnsupportedError: A field asks for what only Anthropic's servers have.
    """
    if body.get("max_tokens") is None:
        raise bad_field("max_tokens", "is required")
    messages = _messages(body)
    chat = {**picked(body, _SAME), "messages": messages, **_end(messages)}
    if body.get("stream") is True:
        chat["stream_options"] = {"include_usage": True}
    if stops := given_at(body, "stop_sequences", list_at):
        chat["stop"] = stops
    choice = _tool_choice(body.get("tool_choice"))
    chat |= thinking_fields(body, think)
    if tools := given_at(body, "tools", list_at):
        chat |= {"tools": _tools(tools), **choice}
    return {**chat, **_response_format(body)}


def tokenize_of_message(body: Mapping[str, Any], think: Think = no_effect) -> Chat:
    """Returns the request for `/tokenize`; arguments and errors as above."""
    messages = _messages(body)
    payload = {**picked(body, ("model",)), "messages": messages, **_end(messages)}
    payload |= picked(thinking_fields(body, think), (TEMPLATE,))
    tools = given_at(body, "tools", list_at)
    return {**payload, "tools": _tools(tools)} if tools else payload


def _messages(body: Mapping[str, Any]) -> list[Chat]:
    given = list_at(body.get("messages"), "messages")
    messages: list[Chat] = []
    if text := _system(body.get("system")):
        messages.append(noted({"role": "system", "content": text}, "system", "system"))
    for index, value in enumerate(given):
        place = f"messages[{index}]"
        message = object_at(value, place)
        role = choice_at(message.get("role"), f"{place}.role", ("user", "assistant", "system"))
        at, blocks = f"{place}.content", message.get("content")
        if not isinstance(blocks, list):
            blocks = [{"type": "text", "text": text_at(blocks, at)}]
        if not blocks and role != "assistant":
            raise bad_field(at, "must not be empty")
        if role == "assistant":
            messages.append(noted(_assistant(blocks, at), "turn", place))
        else:
            messages += _user(role, blocks, place)
    if not given:
        raise bad_field("messages", "must not be empty")
    if messages[-1].get("tool_calls"):
        what = "must end with a text, or with the results of its tool calls"
        raise bad_field("messages", what)
    return _merged(messages)


def _end(messages: list[Chat]) -> Chat:
    """Returns the fields by which the answer goes on with a last message of the assistant's."""
    if messages[-1]["role"] != "assistant":
        return {}
    return {"add_generation_prompt": False, "continue_final_message": True}


def _merged(messages: list[Chat]) -> list[Chat]:
    """Makes the user's messages that follow each other one, as at Anthropic's."""
    merged: list[Chat] = []
    for role, run in groupby(messages, lambda message: message["role"]):
        if role == "user":
            turns = list(run)
            merged.append({**turns[0], "content": _one(turns)})
        else:
            merged += run
    return merged


def _one(turns: list[Chat]) -> str | list[Chat]:
    """Joins the contents of one message or more; texts in front of the first list are one text."""
    parts: list[Chat] = []
    texts: list[str] = []
    for turn in turns:
        content = turn["content"]
        if isinstance(content, str) and not parts:
            texts.append(content)
        elif isinstance(content, str):
            parts.append(_part_of(turn, content))
        elif parts or not texts:
            parts += content
        else:
            parts += [_part_of(turns[0], "\n\n".join(texts)), *content]
    return parts or "\n\n".join(texts)


def _part_of(turn: Chat, text: str) -> Chat:
    return noted_as(turn, {"type": "text", "text": text})


def _system(system: Any) -> str:
    if system is None:
        return ""
    if isinstance(system, str):
        return system
    return "\n\n".join(
        _text(block, f"system[{at}]") for at, block in enumerate(list_at(system, "system"))
    )


def _text(value: Any, place: str) -> str:
    block = object_at(value, place)
    if block.get("type") != "text":
        raise unsupported_at(f"{place}.type", block.get("type"), "this model takes text here")
    return text_at(block.get("text"), f"{place}.text")


def _user(role: str, blocks: list[Any], place: str) -> list[Chat]:
    """Returns a user's message: results of tools are messages of their own, in their order."""
    messages: list[Chat] = []
    parts: list[Chat] = []
    for index, value in enumerate(blocks):
        at = f"{place}.content[{index}]"
        block = object_at(value, at)
        if block.get("type") == "tool_result":
            messages += _joined(role, parts, place)
            parts = []
            messages.append(_result(block, at))
        else:
            parts.append(_user_part(block, at))
    return [*messages, *_joined(role, parts, place)]


def _joined(role: str, parts: list[Chat], place: str) -> list[Chat]:
    if not parts:
        return []
    content: Any = parts
    if all(part["type"] == "text" for part in parts):
        content = "\n".join(part["text"] for part in parts)
    return [noted({"role": role, "content": content}, "turn", place)]


def _user_part(block: Mapping[str, Any], place: str) -> Chat:
    kind = block.get("type")
    if kind == "text":
        text = {"type": "text", "text": text_at(block.get("text"), f"{place}.text")}
        return noted(text, "text", place)
    source = block.get("source")
    if kind == "image":
        image = {"type": "image_url", "image_url": {"url": _image(source, f"{place}.source")}}
        return noted(image, "image", place)
    if kind == "document" and isinstance(source, dict) and source.get("type") == "text":
        text = {"type": "text", "text": text_at(source.get("data"), f"{place}.source.data")}
        return noted(text, "document", place)
    raise unsupported_at(f"{place}.type", kind, "this model takes texts, images and tool results")


def _image(value: Any, place: str) -> str:
    source = object_at(value, place)
    if choice_at(source.get("type"), f"{place}.type", ("base64", "url")) == "url":
        return text_at(source.get("url"), f"{place}.url")
    media = text_at(source.get("media_type"), f"{place}.media_type")
    return f"data:{media};base64,{text_at(source.get('data'), f'{place}.data')}"


def _result(block: Mapping[str, Any], place: str) -> Chat:
    content = block.get("content") or ""
    if not isinstance(content, str):
        blocks = enumerate(list_at(content, f"{place}.content"))
        content = "\n".join(_text(part, f"{place}.content[{at}]") for at, part in blocks)
    if not content and block.get("is_error"):
        content = "error"
    call_id = text_at(block.get("tool_use_id"), f"{place}.tool_use_id")
    result = {"role": "tool", "tool_call_id": call_id, "content": content}
    return noted(result, "result", place)


def _assistant(blocks: list[Any], place: str) -> Chat:
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[Chat] = []
    for index, value in enumerate(blocks):
        at = f"{place}[{index}]"
        block = object_at(value, at)
        kind = block.get("type")
        if kind == "text":
            texts.append(text_at(block.get("text"), f"{at}.text"))
        elif kind == "thinking":
            thoughts.append(text_at(block.get("thinking"), f"{at}.thinking"))
        elif kind == "tool_use":
            calls.append(_call(block, at))
        elif kind not in _SKIPPED:
            what = "this model takes its own texts, thoughts and tool calls"
            raise unsupported_at(f"{at}.type", kind, what)
    message: Chat = {"role": "assistant", "content": "".join(texts)}
    if thoughts:
        message["reasoning_content"] = "\n".join(thoughts)
    if calls:
        message["tool_calls"] = calls
        message["content"] = message["content"] or None
    return message


def _call(block: Mapping[str, Any], place: str) -> Chat:
    arguments = encode_json(object_at(block.get("input"), f"{place}.input")).decode()
    name = text_at(block.get("name"), f"{place}.name")
    function = {"name": name, "arguments": arguments}
    call_id = text_at(block.get("id"), f"{place}.id")
    return noted({"id": call_id, "type": "function", "function": function}, "call", place)


def _tools(values: list[Any]) -> list[Chat]:
    tools = []
    for index, given in enumerate(values):
        place = f"tools[{index}]"
        tool = object_at(given, place)
        if tool.get("type") not in (None, "custom"):
            what = "tools that Anthropic defines are not here; give `name` and `input_schema`"
            raise unsupported_at(f"{place}.type", tool["type"], what)
        function: Chat = {"name": text_at(tool.get("name"), f"{place}.name")}
        if tool.get("description"):
            function["description"] = text_at(tool["description"], f"{place}.description")
        schema = object_at(tool.get("input_schema"), f"{place}.input_schema")
        function["parameters"] = schema
        tools.append({"type": "function", "function": function})
    return tools


def _tool_choice(value: Any) -> Chat:
    if value is None:
        return {}
    given = object_at(value, "tool_choice")
    kind = choice_at(given.get("type"), "tool_choice.type", (*_CHOICES, "tool"))
    choice: Any = _CHOICES.get(kind)
    if kind == "tool":
        name = text_at(given.get("name"), "tool_choice.name")
        choice = {"type": "function", "function": {"name": name}}
    single = {"parallel_tool_calls": False} if given.get("disable_parallel_tool_use") else {}
    return {"tool_choice": choice, **single}


def _response_format(body: Mapping[str, Any]) -> Chat:
    config = given_at(body, "output_config", object_at) or {}
    place, value = "output_config.format", config.get("format")
    if value is None:
        place, value = "output_format", body.get("output_format")
    if value is None:
        return {}
    form = object_at(value, place)
    choice_at(form.get("type"), f"{place}.type", ("json_schema",))
    schema = object_at(form.get("schema"), f"{place}.schema")
    described = {"name": "output", "schema": schema, "strict": True}
    return {"response_format": {"type": "json_schema", "json_schema": described}}
