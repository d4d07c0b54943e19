"""Forced calls are bound to their functions' schemas, whether they say `strict` or not."""

from __future__ import annotations

from typing import Any

import pytest
from vllm.entrypoints.openai.chat_completion.protocol import (
    ChatCompletionNamedToolChoiceParam,
    ChatCompletionToolsParam,
)
from vllm.tool_parsers import structural_tag_registry as registry

from deployments.vllm.patches.forced_calls import bind_forced_calls

SCHEMA = {"type": "object", "properties": {"a": {"enum": [5]}}, "required": ["a"]}
TOOL = ChatCompletionToolsParam.model_validate(
    {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}
)
NAMED = ChatCompletionNamedToolChoiceParam.model_validate(
    {"type": "function", "function": {"name": "f"}}
)


@pytest.fixture(autouse=True)
def mended(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "resolve_tool_strictness"
    monkeypatch.setattr(registry, name, getattr(registry, name))
    bind_forced_calls()
    bind_forced_calls()


@pytest.mark.parametrize("choice", ["required", NAMED])
def test_a_forced_call_is_bound(choice: Any) -> None:
    tag = registry.get_model_structural_tag("hermes", [TOOL], choice, reasoning=False)
    assert '"enum":[5]' in tag.model_dump_json()
    assert TOOL.function.strict is not True, "the request keeps its own"


def test_a_call_that_the_model_chooses_is_not() -> None:
    assert registry.get_model_structural_tag("hermes", [TOOL], "auto", reasoning=False) is None


def test_a_vllm_that_moved_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(registry, "resolve_tool_strictness")
    with pytest.raises(RuntimeError, match="resolve_tool_strictness"):
        bind_forced_calls()
