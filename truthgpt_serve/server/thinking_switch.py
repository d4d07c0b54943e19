"""Switches a model's thoughts on and off by its chat template's own variables.

Templates have different switches: most read `enable_thinking`, DeepSeek-V3.1's, Kimi-K2.5's and
Granite's read `thinking`, Mistral Small 4's reads `reasoning_effort`. What a template does not read
has no effect on it, so all are given at once; an effort alone is tried first, since gpt-oss's
prints any word into the prompt, and others refuse what they do not know.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, NamedTuple

SWITCHES = ("enable_thinking", "thinking")
_OFF, _DEEP = "none", "high"
_UNKNOWN = "Qx7Effort"
"""An effort that no template knows."""

Render = Callable[[Mapping[str, Any]], str]
"""Returns the prompt of a short chat with variables; nothing where the template refuses them."""


class Wish(NamedTuple):
    """What a request says of thoughts.

    Attributes:
        is_on: Whether the model is to think; None where it says nothing.
        effort: How much work goes into the answer, or None.
        max_tokens: The most tokens of thoughts, or None.
    """

    is_on: bool | None = None
    effort: str | None = None
    max_tokens: int | None = None


def switched(given: Mapping[str, Any], *, is_on: bool) -> dict[str, Any]:
    """Returns a template's variables with its switches; those that are given stay alone."""
    if any(name in given for name in SWITCHES):
        return dict(given)
    return {**dict.fromkeys(SWITCHES, is_on), **given}


class ThinkingSwitch:
    """What one chat template is told of thoughts.

    Args:
        render: See `Render`.
    """

    def __init__(self, render: Render) -> None:
        self._render = render
        self._taken: dict[str, bool] = {}

    def variables(self, wish: Wish, given: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the variables for a wish; those that are given count more."""
        effort = self._effort(wish)
        told = {} if effort is None else {"reasoning_effort": effort}
        if wish.is_on is None:
            return {**told, **given}
        return switched({**told, **given}, is_on=wish.is_on)

    def _effort(self, wish: Wish) -> str | None:
        if wish.is_on is False:
            return _OFF if self._is_off_by_effort else None
        if wish.effort is not None and self._takes(wish.effort):
            return wish.effort
        needs_one = wish.is_on and self._is_off_by_effort and self._is_off_first
        return _DEEP if needs_one else None

    def _takes(self, effort: str) -> bool:
        if effort not in self._taken:
            self._taken[effort] = bool(self._render({"reasoning_effort": effort}))
        return self._taken[effort]

    @cached_property
    def _is_off_by_effort(self) -> bool:
        """Whether the template knows the effort `none`, rather than print any word."""
        unknown = self._render({"reasoning_effort": _UNKNOWN})
        return self._by_none not in ("", unknown) and _UNKNOWN not in unknown

    @cached_property
    def _is_off_first(self) -> bool:
        return self._render({}) == self._by_none

    @cached_property
    def _by_none(self) -> str:
        return self._render({"reasoning_effort": _OFF})
