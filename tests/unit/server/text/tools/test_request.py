"""The fields of chats that are about tools."""

from __future__ import annotations

from typing import Any

import pytest

from truthgpt_serve.errors import RequestError, UnsupportedError
from truthgpt_serve.request_schema import RequestModel, read_request
from truthgpt_serve.server.text.tools.request import ToolChoice, Tools, ToolUse, read_tools

ADD = {"type": "function", "function": {"name": "add", "strict": True}}
SUB: dict[str, Any] = {
    "type": "function",
    "function": {"name": "sub", "parameters": {"type": "object"}},
}
NAMED = {"type": "function", "function": {"name": "sub"}}


class Body(RequestModel):
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None


def read(**fields: Any) -> ToolUse | None:
    body = read_request(Body, fields)
    return read_tools(body.tools, body.tool_choice, parallel=body.parallel_tool_calls)


def test_tools() -> None:
    use = read(tools=[ADD, SUB])
    assert use is not None
    function = {"name": "add", "description": "", "parameters": use.schemas["add"]}
    assert use.tools[0] == {"type": "function", "function": function}
    assert use.schemas["add"] == {"type": "object", "properties": {}}
    assert (use.name, use.is_forced, use.single) == ("", False, False)


@pytest.mark.parametrize("fields", [{}, {"tools": []}, {"tools": [ADD], "tool_choice": "none"}])
def test_no_tools(fields: Any) -> None:
    assert read(**fields) is None


def test_choices() -> None:
    use = read(tools=[ADD, SUB], tool_choice="required", parallel_tool_calls=False)
    assert use is not None
    assert (use.name, use.is_forced, use.single) == ("", True, True)
    use = read(tools=[ADD], tool_choice="required")
    assert use is not None
    assert (use.name, use.is_forced, use.single) == ("add", True, False)
    use = read(tools=[ADD, SUB], tool_choice=NAMED)
    assert use is not None
    assert (use.name, use.is_forced, use.single) == ("sub", True, True)


@pytest.mark.parametrize(
    ("fields", "param", "kind"),
    [
        ({"tools": [{"type": "custom", "function": {}}]}, "tools[0].type", UnsupportedError),
        ({"tools": [{"type": "function"}]}, "tools[0].function", RequestError),
        ({"tools": [{**ADD, "function": {"name": "a b"}}]}, "tools[0].function.name", RequestError),
        ({"tools": [ADD] * 513}, "tools", RequestError),
        ({"tools": [ADD], "tool_choice": "any"}, "tool_choice", RequestError),
        ({"tools": [ADD], "tool_choice": NAMED}, "tool_choice", RequestError),
        ({"tool_choice": "required"}, "tool_choice", RequestError),
    ],
)
def test_errors(fields: Any, param: str, kind: type[RequestError]) -> None:
    with pytest.raises(kind) as raised:
        read(**fields)
    assert (raised.value.param, type(raised.value)) == (param, kind)
