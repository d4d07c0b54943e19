"""The fields of a chat request that are about tools."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from pydantic import Field

from truthgpt_serve.grammar.fields import Grammar
from truthgpt_serve.request_schema import (
    RequestModel,
    Via,
    bad_field,
    unsupported_unless,
    wanted,
)

MAX_TOOLS = 512
"""Most tools of a request, whatever `serving.limits.max_tools` says."""
MAX_NAME = 256
_NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}}
_WORDS = ("auto", "none", "required")
_REF = '"$ref"'


class ToolFunction(RequestModel):
    """A function that the model may call."""

    name: Annotated[str, Field(min_length=1, max_length=MAX_NAME, pattern=r"^[\w.:-]+$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(RequestModel):
    """A tool: only functions can be."""

    type: Annotated[Any, unsupported_unless(lambda v: v == "function", "calls functions only")]
    function: ToolFunction


@dataclass(frozen=True, slots=True)
class NamedFunction:
    """The choice of one function."""

    name: str


def _choice(value: Any) -> str | NamedFunction:
    if value in _WORDS:
        return str(value)
    function = value.get("function") if isinstance(value, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or value.get("type") != "function":
        raise wanted('auto, none, required, or {"type": "function", "function": {"name": ...}}')
    return NamedFunction(name)


Tools = Annotated[list[Tool], Field(max_length=MAX_TOOLS, fail_fast=True)]
ToolChoice = Annotated[str | NamedFunction, Via(Any, _choice)]


@dataclass(frozen=True, slots=True)
class ToolUse:
    """What a request says of tools.

    Attributes:
        tools: Those that the model may call, as chat templates take them.
        schemas: The parameters of each function as JSON Schemas.
        name: The function that must be called, or nothing.
        is_forced: Whether one must be called.
        single: Whether one call is the most.
    """

    tools: list[dict[str, Any]]
    schemas: Mapping[str, Mapping[str, Any]]
    name: str = ""
    is_forced: bool = False
    single: bool = False

    def fits(self, most: int) -> bool:
        """Returns whether the schemas of what may be called have so many bytes of JSON at most."""
        names = [self.name] if self.name else self.schemas
        for name in names:
            most -= len(msgspec.json.encode(self.schemas[name]))
            if most < 0:
                return False
        return True

    def grammar(self, key: str) -> Grammar:
        """Returns what binds the answer to a call: its arguments, or all of it where it may choose.

        Args:
            key: The key of the arguments.
        """
        if self.name:
            return Grammar("json", _encode(self.schemas[self.name]), "tools")
        calls = [
            {
                "type": "object",
                "properties": {"name": {"const": name}, key: {"$ref": f"#/$defs/{number}"}},
                "required": ["name", key],
                "additionalProperties": False,
            }
            for number, name in enumerate(self.schemas)
        ]
        # A schema's own references begin at its root, which is then another place.
        moved = {
            str(number): _moved(schema, f"#/$defs/{number}") if _REF in _encode(schema) else schema
            for number, schema in enumerate(self.schemas.values())
        }
        return Grammar("json", _encode({"anyOf": calls, "$defs": moved}), "tools")


def _moved(value: Any, root: str) -> Any:
    """Returns a part of a schema whose references `#/...` begin at another root."""
    if isinstance(value, list):
        return [_moved(item, root) for item in value]
    if not isinstance(value, Mapping):
        return value
    moved = {key: _moved(item, root) for key, item in value.items()}
    reference = moved.get("$ref")
    if isinstance(reference, str) and reference.startswith("#"):
        moved["$ref"] = root + reference[1:]
    return moved


def _encode(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def read_tools(
    tools: list[Tool] | None, choice: str | NamedFunction | None, *, parallel: bool | None
) -> ToolUse | None:
    """Returns what a request says of tools, or None where the model is to call none.

    Raises:
        RequestError: The choice names no function of the request.
    """
    if not tools:
        if choice is not None and choice not in ("none", "auto"):
            raise bad_field("tool_choice", "is only allowed together with `tools`")
        return None
    if choice == "none":
        return None
    described = [_described(tool.function) for tool in tools]
    schemas = {item["name"]: item["parameters"] for item in described}
    name = choice.name if isinstance(choice, NamedFunction) else ""
    if name and name not in schemas:
        raise bad_field("tool_choice", f"names {name[:80]!r}, which is not among `tools`")
    is_forced = bool(name) or choice == "required"
    return ToolUse(
        tools=[{"type": "function", "function": item} for item in described],
        schemas=schemas,
        name=next(iter(schemas)) if is_forced and len(schemas) == 1 else name,
        is_forced=is_forced,
        single=parallel is False or bool(name),
    )


def _described(function: ToolFunction) -> dict[str, Any]:
    parameters = function.parameters or _NO_PARAMETERS
    description = function.description or ""
    return {"name": function.name, "description": description, "parameters": parameters}
