"""A request for OpenAI's Responses API as one for the chat route."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from truthgpt_serve.errors import UnsupportedError
from truthgpt_serve.request_fields import SAMPLING
from truthgpt_serve.request_schema import Count, RequestModel, bad_field, read_request
from truthgpt_serve.server.over_chat.field_names import noted
from truthgpt_serve.server.over_chat.fields import (
    choice_at,
    given_at,
    list_at,
    object_at,
    picked,
    text_at,
    unsupported_at,
)
from truthgpt_serve.server.text.tools.request import MAX_TOOLS

Chat = dict[str, Any]
_SAME = (
    *("model", "stream", "parallel_tool_calls", "stop", "stop_token_ids"),
    *("logit_bias", "chat_template_kwargs"),
    *SAMPLING,
)
_ROLES = ("user", "assistant", "system", "developer")
_STATE = {
    "previous_response_id": "keeps no responses: send the whole conversation in `input`",
    "conversation": "keeps no conversations: send the whole conversation in `input`",
    "background": "answers at once only",
    "prompt": "keeps no prompts: send `instructions` and `input`",
}
"""Fields that need a server which keeps things, and what this one does instead."""
_LOGPROBS = "message.output_text.logprobs"


class _Numbers(RequestModel):
    """Fields with another name on the chat route, whose errors must name them as sent."""

    max_output_tokens: Count | None = None
    top_logprobs: int | None = None


def chat_of_response(body: Mapping[str, Any]) -> Chat:
    """Returns the chat request.

    Raises:
        RequestError: A field is missing or wrong.
        UnsupportedError: A field asks for what only OpenAI's servers have.
    """
    for name, reason in _STATE.items():
        if body.get(name):
            raise UnsupportedError(f"`{name}` has no effect here: the model {reason}", param=name)
    numbers = read_request(_Numbers, body)
    chat = {**picked(body, _SAME), "messages": _messages(body)}
    if numbers.max_output_tokens is not None:
        chat["max_tokens"] = numbers.max_output_tokens
    include = body.get("include")
    included = [] if include is None else list_at(include, "include")
    if numbers.top_logprobs or _LOGPROBS in included:
        chat |= {"logprobs": True, "top_logprobs": numbers.top_logprobs or 0}
    if body.get("stream") is True:
        chat["stream_options"] = {"include_usage": True}
    if tools := given_at(body, "tools", list_at):
        chat |= _tools(tools, body)
    if reasoning := given_at(body, "reasoning", object_at):
        effort = reasoning.get("effort")
        chat |= {} if effort is None else {"reasoning_effort": effort}
    return {**chat, **_response_format(body)}


def _messages(body: Mapping[str, Any]) -> list[Chat]:
    messages: list[Chat] = []
    if text := given_at(body, "instructions", text_at):
        messages.append(noted({"role": "system", "content": text}, "text", "instructions"))
    given = body.get("input")
    if isinstance(given, str):
        return [*messages, noted({"role": "user", "content": given}, "text", "input")]
    if given is None:
        raise bad_field("input", "is required")
    items = list_at(given, "input")
    if not items:
        raise bad_field("input", "must not be empty")
    for index, value in enumerate(items):
        _add_item(messages, object_at(value, f"input[{index}]"), f"input[{index}]")
    return messages


def _add_item(messages: list[Chat], item: Mapping[str, Any], place: str) -> None:
    """Appends an item; what the assistant thought, said and called at once is one message."""
    kind = item.get("type") or "message"
    if kind == "message":
        role = choice_at(item.get("role"), f"{place}.role", _ROLES)
        content = _content(item.get("content"), f"{place}.content", role)
        if role == "assistant":
            turn = _turn(messages, place, "content")
            turn["content"] = content
        else:
            messages.append(noted({"role": role, "content": content}, "turn", place))
    elif kind == "function_call":
        turn = _turn(messages, place)
        function = {
            "name": text_at(item.get("name"), f"{place}.name"),
            "arguments": text_at(item.get("arguments"), f"{place}.arguments"),
        }
        call_id = text_at(item.get("call_id"), f"{place}.call_id")
        call = {"id": call_id, "type": "function", "function": function}
        turn.setdefault("tool_calls", []).append(noted(call, "call", place))
    elif kind == "function_call_output":
        call_id = text_at(item.get("call_id"), f"{place}.call_id")
        content = _content(item.get("output"), f"{place}.output", "tool")
        result = {"role": "tool", "tool_call_id": call_id, "content": content}
        messages.append(noted(result, "result", place))
    elif kind == "reasoning":
        if thoughts := _thoughts(item, place):
            _turn(messages, place, "reasoning_content")["reasoning_content"] = thoughts
    else:
        what = "this model takes messages, function calls, their outputs and reasoning"
        raise unsupported_at(f"{place}.type", kind, what)


def _turn(messages: list[Chat], place: str, new: str | None = None) -> Chat:
    """Returns the assistant's message to add to: a new one where the last has the field already."""
    last = messages[-1] if messages else {"role": ""}
    order = ("reasoning_content", "content", "tool_calls")
    behind = () if new is None else order[order.index(new) :]
    if last["role"] == "assistant" and not any(last.get(name) for name in behind):
        return last
    messages.append(noted({"role": "assistant", "content": None}, "turn", place))
    return messages[-1]


def _thoughts(item: Mapping[str, Any], place: str) -> str:
    texts = []
    for name in ("content", "summary"):
        for at, value in enumerate(list_at(item.get(name) or [], f"{place}.{name}")):
            part = object_at(value, f"{place}.{name}[{at}]")
            texts.append(text_at(part.get("text"), f"{place}.{name}[{at}].text"))
        if texts:
            break
    return "\n".join(texts)


def _content(value: Any, place: str, role: str) -> str | list[Chat]:
    if isinstance(value, str):
        return value
    if value is None:
        raise bad_field(place, "is required")
    parts = []
    for at, given in enumerate(list_at(value, place)):
        parts.append(_part(object_at(given, f"{place}[{at}]"), f"{place}[{at}]", role))
    if all(part["type"] == "text" for part in parts):
        return "".join(part["text"] for part in parts)
    return parts


def _part(part: Mapping[str, Any], place: str, role: str) -> Chat:
    kind = part.get("type")
    if kind in ("input_text", "output_text", "text"):
        text = {"type": "text", "text": text_at(part.get("text"), f"{place}.text")}
        return noted(text, "part", place)
    if kind == "refusal":
        return {"type": "text", "text": text_at(part.get("refusal"), f"{place}.refusal")}
    if kind == "input_image" and role == "user" and part.get("image_url"):
        image = {"url": text_at(part["image_url"], f"{place}.image_url"), **_detail(part)}
        return noted({"type": "image_url", "image_url": image}, "image", place)
    raise unsupported_at(f"{place}.type", kind, "this model takes texts, and images by address")


def _detail(part: Mapping[str, Any]) -> Chat:
    return {"detail": part["detail"]} if part.get("detail") else {}


def _tools(values: list[Any], body: Mapping[str, Any]) -> Chat:
    tools: list[Chat] = []
    for index, value in enumerate(values):
        place = f"tools[{index}]"
        tool = object_at(value, place)
        if tool.get("type") != "function":
            what = "this model takes functions only: OpenAI's own tools are not here"
            raise unsupported_at(f"{place}.type", tool.get("type"), what)
        name = text_at(tool.get("name"), f"{place}.name")
        function: Chat = {"name": name}
        function |= picked(tool, ("description", "parameters", "strict"))
        tools.append({"type": "function", "function": function})
    choice = body.get("tool_choice")
    if choice is None:
        return {"tools": tools}
    if not isinstance(choice, dict):
        words = ("auto", "none", "required")
        return {"tools": tools, "tool_choice": choice_at(choice, "tool_choice", words)}
    kind = choice.get("type")
    if kind == "function":
        name = text_at(choice.get("name"), "tool_choice.name")
        return {"tools": tools, "tool_choice": {"type": "function", "function": {"name": name}}}
    if kind == "allowed_tools":
        allowed = list_at(choice.get("tools"), "tool_choice.tools")
        if len(allowed) > MAX_TOOLS:
            raise bad_field("tool_choice.tools", f"must have at most {MAX_TOOLS} entries")
        given = (tool.get("name") for tool in allowed if isinstance(tool, dict))
        names = {name for name in given if isinstance(name, str)}
        kept = [tool for tool in tools if tool["function"]["name"] in names]
        return {"tools": kept, "tool_choice": choice.get("mode") or "auto"}
    raise unsupported_at("tool_choice.type", kind, "this model takes functions only")


def _response_format(body: Mapping[str, Any]) -> Chat:
    value = (given_at(body, "text", object_at) or {}).get("format")
    if value is None:
        return {}
    form = object_at(value, "text.format")
    kinds = ("text", "json_object", "json_schema")
    kind = choice_at(form.get("type"), "text.format.type", kinds)
    if kind != "json_schema":
        return {} if kind == "text" else {"response_format": {"type": kind}}
    schema = object_at(form.get("schema"), "text.format.schema")
    described = {"name": text_at(form.get("name"), "text.format.name"), "schema": schema}
    described |= picked(form, ("description", "strict"))
    return {"response_format": {"type": kind, "json_schema": described}}
