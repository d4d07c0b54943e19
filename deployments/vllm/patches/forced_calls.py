"""Binds the arguments of calls that a request forces to the functions' schemas.

Where a parser has a structural tag, vLLM binds the arguments of tools only that say `strict: true`;
of others it takes any JSON, `false` too, which no client can read as arguments. Without a parser it
binds them always.
"""

from __future__ import annotations

import functools
from typing import Any

from vllm.tool_parsers import structural_tag_registry as registry
from vllm.tool_parsers.tool_strict_level import ToolStrictLevel

from deployments.vllm.patches.methods import moved

_MENDED = "_truthgpt_mended"


def bind_forced_calls() -> None:
    """Has vLLM treat every tool as strict where the request's `tool_choice` forces a call.

    Raises:
        RuntimeError: vLLM moved the function.
    """
    original = getattr(registry, "resolve_tool_strictness", None)
    if original is None:
        raise moved("resolve_tool_strictness")
    if hasattr(original, _MENDED):
        return

    @functools.wraps(original)
    def resolve(tools: Any, tool_choice: Any, strict_level: Any) -> Any:
        if getattr(tool_choice, "mode", tool_choice) not in ("auto", "none", None):
            strict_level = ToolStrictLevel.PARAMETER
        return original(tools, tool_choice, strict_level)

    setattr(resolve, _MENDED, True)
    registry.resolve_tool_strictness = resolve
