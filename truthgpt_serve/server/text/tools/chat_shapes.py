"""Shapes of a chat that say the same, for templates without a place for all of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from truthgpt_serve.server.text.messages import ChatMessage

_CALLS = "tool_calls"
PLANS = ("tool_plan", "reasoning_content", "thinking")
"""Where templates have what is said before calls, as Command R7B has."""


def _as_plan(messages: list[ChatMessage]) -> list[ChatMessage]:
    """Has what is said before calls stand where templates look for a plan."""
    return [
        {**message, "content": "", **dict.fromkeys(PLANS, message["content"])}
        if _CALLS in message and message["content"]
        else message
        for message in messages
    ]


def _one_call_each(messages: list[ChatMessage]) -> list[ChatMessage]:
    """Gives each call a message of its own, with its result behind it."""
    shaped: list[ChatMessage] = []
    waiting = deque(messages)
    while waiting:
        message = waiting.popleft()
        calls = message.get(_CALLS, ())
        if len(calls) < 2:
            shaped.append(message)
            continue
        results: list[ChatMessage] = []
        while waiting and waiting[0]["role"] == "tool":
            results.append(waiting.popleft())
        for number, call in enumerate(calls):
            content = message["content"] if number == 0 else ""
            shaped.append({**message, "content": content, _CALLS: [call]})
            call_id = call.get("id")
            at = (n for n, one in enumerate(results) if one.get("tool_call_id", call_id) == call_id)
            if (found := next(at, None)) is not None:
                shaped.append(results.pop(found))
        shaped += results
    return shaped


def _said_apart(messages: list[ChatMessage]) -> list[ChatMessage]:
    """Gives what is said before calls a message of its own."""
    shaped: list[ChatMessage] = []
    for message in messages:
        if _CALLS in message and message["content"]:
            shaped.append({"role": message["role"], "content": message["content"]})
            message = {**message, "content": ""}
        shaped.append(message)
    return shaped


SHAPES: tuple[Callable[[list[ChatMessage]], list[ChatMessage]], ...] = (
    lambda messages: messages,
    _as_plan,
    _one_call_each,
    lambda messages: _as_plan(_one_call_each(messages)),
    lambda messages: _said_apart(_one_call_each(messages)),
)
"""The shapes that are tried; the client's own first."""
