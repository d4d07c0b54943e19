"""The fields of chats that are about tools."""

from __future__ import annotations

import json
from typing import Any

import pytest
import xgrammar
from xgrammar.testing import _is_grammar_accept_string

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


def test_schemas_of_what_may_be_called_fit_into_so_many_bytes() -> None:
    large = {"type": "function", "function": {"name": "big", "parameters": {"x": "y" * 900}}}
    use = read(tools=[large, SUB])
    assert use is not None
    assert use.fits(1000)
    assert not use.fits(900)
    named = read(tools=[large, SUB], tool_choice=NAMED)
    assert named is not None
    assert named.fits(len('{"type":"object"}'))
    assert not named.fits(len('{"type":"object"}') - 1)


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


def test_a_forced_call_of_several_functions_keeps_their_references() -> None:
    tree = {"type": "object", "properties": {"left": {"$ref": "#"}}, "additionalProperties": False}
    thing = {
        "type": "object",
        "$defs": {"Color": {"enum": ["red", "blue"]}},
        "properties": {"color": {"$ref": "#/$defs/Color"}},
        "required": ["color"],
    }
    named = [
        ("tree", tree),
        ("thing", thing),
        ("other", {**thing, "$defs": {"Color": {"enum": [1]}}}),
    ]
    tools = [
        {"type": "function", "function": {"name": name, "parameters": schema}}
        for name, schema in named
    ]
    use = read(tools=tools, tool_choice="required")
    assert use is not None
    grammar = xgrammar.Grammar.from_json_schema(use.grammar("arguments").text)
    for name, arguments, is_right in (
        ("tree", {"left": {"left": {}}}, True),
        ("tree", {"left": 1}, False),
        ("thing", {"color": "red"}, True),
        ("thing", {"color": 1}, False),
        ("other", {"color": 1}, True),
        ("other", {"color": "red"}, False),
    ):
        call = json.dumps({"name": name, "arguments": arguments})
        assert _is_grammar_accept_string(grammar, call) is is_right, call


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
