"""Finds, in the body of a request, what becomes a grammar that binds the answer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

Body = Mapping[str, Any]


class Grammar(NamedTuple):
    """What binds an answer.

    Attributes:
        kind: `json`, `regex`, `choice`, `grammar` or `structural_tag`; `tools` is only measured,
            and `json_object` is found only where it is false, which means nothing.
        text: The schema, pattern or grammar; of choices and tools a JSON list.
        param: The request's field that it came in.
    """

    kind: str
    text: str
    param: str


def find_grammars(body: Body) -> Iterator[Grammar]:
    """Yields the grammars of a request, on any of vLLM's routes.

    A field of a wrong type is left to vLLM.
    """
    if not (body.keys() & _FIELDS):
        return
    yield from _structured_outputs(body.get("structured_outputs"), "structured_outputs")
    yield from _format(body.get("response_format"), "response_format")
    for outer in ("text", "output_config"):
        holder = body.get(outer)
        if isinstance(holder, dict):
            yield from _format(holder.get("format"), f"{outer}.format")
    inner = body.get("sampling_params")
    if isinstance(inner, dict):
        param = "sampling_params.structured_outputs"
        yield from _structured_outputs(inner.get("structured_outputs"), param)
    if _tools_bind(body):
        yield Grammar("tools", json.dumps([_schema_of(tool) for tool in body["tools"]]), "tools")


_FIELDS = frozenset(
    ("structured_outputs", "response_format", "text", "output_config", "sampling_params", "tools")
)
_KINDS = ("json", "regex", "choice", "grammar", "structural_tag")


def _structured_outputs(value: Any, param: str) -> Iterator[Grammar]:
    if not isinstance(value, dict):
        return
    if value.get("json_object") is False:
        yield Grammar("json_object", "false", f"{param}.json_object")
    for kind in _KINDS:
        given = value.get(kind)
        if given is None:
            continue
        if isinstance(given, str):
            yield Grammar(kind, given, f"{param}.{kind}")
        elif kind in ("json", "choice", "structural_tag") and isinstance(given, (dict, list)):
            yield Grammar(kind, json.dumps(given), f"{param}.{kind}")


def _format(value: Any, param: str) -> Iterator[Grammar]:
    if not isinstance(value, dict):
        return
    if value.get("type") == "structural_tag":
        yield Grammar("structural_tag", json.dumps(value), param)
        return
    holder = value.get("json_schema")
    holder, param = (holder, f"{param}.json_schema") if isinstance(holder, dict) else (value, param)
    schema = holder.get("schema")
    if isinstance(schema, str):
        yield Grammar("json", schema, f"{param}.schema")
    elif isinstance(schema, (dict, list)):
        yield Grammar("json", json.dumps(schema), f"{param}.schema")


def _tools_bind(body: Body) -> bool:
    """Whether the tools' schemas bind the answer: a call is forced, or a tool is strict."""
    tools = body.get("tools")
    if not isinstance(tools, list):
        return False
    choice = body.get("tool_choice")
    kind = choice.get("type") if isinstance(choice, dict) else choice
    if kind is not None and kind not in ("auto", "none"):
        return True
    return kind != "none" and any(_is_strict(tool) for tool in tools)


def _is_strict(tool: Any) -> bool:
    if not isinstance(tool, dict):
        return False
    function = tool.get("function")
    return bool(tool.get("strict") or (isinstance(function, dict) and function.get("strict")))


def _schema_of(tool: Any) -> Any:
    """Returns a tool's schema: OpenAI's chat, its Responses or Anthropic's form."""
    if not isinstance(tool, dict):
        return None
    function = tool.get("function")
    holder = function if isinstance(function, dict) else tool
    return holder.get("parameters") or holder.get("input_schema")
