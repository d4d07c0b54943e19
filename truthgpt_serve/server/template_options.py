"""The variables that a request gives to a chat template, such as `enable_thinking`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from truthgpt_serve.request_schema import Via, wanted
from truthgpt_serve.server.thinking_switch import switched

EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
_RESERVED = frozenset(
    (
        *("self", "messages", "conversation", "conversations", "tools", "documents", "tokenize"),
        *("chat_template", "add_generation_prompt", "continue_final_message", "padding"),
        *("truncation", "max_length", "return_tensors", "return_dict", "tokenizer_kwargs"),
        "return_assistant_tokens_mask",
    )
)
"""What the server says itself, or has fields of its own in requests."""


def _variables(value: Any) -> dict[str, Any] | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise wanted("an object of the chat template's variables")
    if taken := sorted(value.keys() & _RESERVED):
        raise wanted(f"an object of the chat template's variables, without `{taken[0]}`")
    return value


TemplateVariables = Annotated[dict[str, Any] | None, Via(Any, _variables)]
"""The field `chat_template_kwargs`."""


def template_options(given: Mapping[str, Any] | None, effort: Effort | None) -> dict[str, Any]:
    """Returns a template's variables, with those that say how long the model thinks.

    Args:
        given: Those of the request.
        effort: Its `reasoning_effort`, which switches thoughts off or on too, as at vLLM's.
    """
    if effort is None:
        return dict(given or {})
    return {"reasoning_effort": effort, **switched(given or {}, is_on=effort != "none")}


def known_options(apply: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options that a tokenizer's `apply_chat_template` takes."""
    try:
        parameters = inspect.signature(apply).parameters
    except (TypeError, ValueError):
        return {}
    if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values()):
        return dict(options)
    return {name: value for name, value in options.items() if name in parameters}
