"""What a request for Anthropic's Messages API says of thoughts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from truthgpt_serve.request_schema import bad_field
from truthgpt_serve.server.over_chat.fields import choice_at, given_at, object_at
from truthgpt_serve.server.thinking_switch import Wish
from truthgpt_serve.wording import shown

TEMPLATE = "chat_template_kwargs"
Think = Callable[[Wish, Mapping[str, Any]], dict[str, Any]]
"""Returns the fields of a chat request for a wish and the template's variables in the request."""
_IS_ON = {"enabled": True, "disabled": False, "adaptive": None}
_EFFORTS = ("low", "medium", "high", "xhigh", "max")


def no_effect(wish: Wish, given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the template's variables alone: of the template nothing is known."""
    return {TEMPLATE: dict(given)} if given else {}


def thinking_fields(body: Mapping[str, Any], think: Think) -> dict[str, Any]:
    """Returns the fields of the chat request. Raises RequestError where they are wrong."""
    wish, given = _wish(body), body.get(TEMPLATE)
    if given is not None and not isinstance(given, dict):
        return {TEMPLATE: given}  # which the chat route refuses
    return think(wish, given or {})


def _wish(body: Mapping[str, Any]) -> Wish:
    config = given_at(body, "output_config", object_at) or {}
    effort = config.get("effort")
    if effort is not None:
        choice_at(effort, "output_config.effort", _EFFORTS)
    thinking = given_at(body, "thinking", object_at)
    if thinking is None:
        return Wish(None, effort)
    is_on = _IS_ON[choice_at(thinking.get("type"), "thinking.type", tuple(_IS_ON))]
    place, most = "thinking.budget_tokens", thinking.get("budget_tokens")
    if most is not None and (type(most) is not int or most < 1):
        raise bad_field(place, f"must be a whole number of at least 1, not {shown(most)}")
    return Wish(is_on, effort, most if is_on else None)
