"""Checks what a text class returned, or yielded."""

from __future__ import annotations

from typing import Any

from truthgpt_serve.errors import ServerError
from truthgpt_serve.server.text.response import Usage

FINISH_REASONS = ("stop", "length", "content_filter")
USAGE_KEYS = ("prompt_tokens", "completion_tokens")


def check_item(item: Any, label: str, method: str) -> tuple[str, str | None, Usage | None]:
    """Returns text, reason to finish and usage of what a class gave.

    Args:
        item: What `infer` returned, or `stream` yielded.
        label: The class's name, for messages.
        method: `infer` or `stream`.

    Raises:
        ServerError: It is nothing that a text model may give.
    """
    text = item.get("text") if isinstance(item, dict) else None
    if not isinstance(text, str):
        verb = "yielded" if method == "stream" else "returned"
        raise ServerError(
            f"{label}.{method} {verb} {_described(item)}; a text-generation model "
            f"{'yields' if method == 'stream' else 'returns'} {{'text': str}}"
        )
    reason = item.get("finish_reason")
    if reason is not None and reason not in FINISH_REASONS:
        raise ServerError(
            f"{label}.{method} gave finish_reason {reason!r}; "
            f"it is one of {', '.join(FINISH_REASONS)}"
        )
    usage = item.get("usage")
    return text, reason, None if usage is None else _checked_usage(usage, f"{label}.{method}")


def _checked_usage(usage: Any, label: str) -> Usage:
    found = usage if isinstance(usage, dict) else {}
    counts = [found.get(key) for key in USAGE_KEYS]
    whole = [count for count in counts if type(count) is int and count >= 0]
    if len(whole) < len(USAGE_KEYS):
        raise ServerError(f"{label} gave a usage without whole numbers for {', '.join(USAGE_KEYS)}")
    return {**dict(zip(USAGE_KEYS, whole, strict=True)), "total_tokens": sum(whole)}


def _described(item: Any) -> str:
    if not isinstance(item, dict):
        return type(item).__name__
    if "text" not in item:
        return f"a dict with {', '.join(map(repr, list(item)[:5])) or 'nothing in it'}"
    return f"a dict whose 'text' is {type(item['text']).__name__}"
