"""The fields of requests that bind an answer to a form."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from pydantic import ConfigDict, Field

from truthgpt_serve.errors import UnsupportedError
from truthgpt_serve.grammar.fields import Grammar
from truthgpt_serve.request_schema import FullText, RequestModel, Wanted, bad_field

Schema = Annotated[dict[str, Any] | bool, Wanted("a JSON schema, an object")]


class JsonSchema(RequestModel):
    """A schema with a name, in OpenAI's form."""

    model_config = ConfigDict(populate_by_name=True)

    name: str | None = None
    value: Schema | None = Field(default=None, alias="schema")


class ResponseFormat(RequestModel):
    """OpenAI's `response_format`."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StructuredOutputs(RequestModel):
    """vLLM's `structured_outputs`: one of its fields."""

    model_config = ConfigDict(populate_by_name=True)

    value: Annotated[dict[str, Any] | bool | str, Wanted("a JSON schema")] | None = Field(
        default=None, alias="json"
    )
    json_object: bool | None = None
    regex: FullText | None = None
    choice: Annotated[list[FullText], Field(min_length=1)] | None = None
    grammar: FullText | None = None
    structural_tag: Any = None


def find_grammar(
    response_format: ResponseFormat | None, outputs: StructuredOutputs | None
) -> Grammar | None:
    """Returns what binds the answer of a request, or None.

    Raises:
        RequestError: Two fields would, or one lacks something.
        UnsupportedError: It is of a kind that only an engine has.
    """
    found = [*_of_format(response_format), *_of_outputs(outputs)]
    if len(found) > 1:
        raise bad_field(found[1].param, f"cannot be used together with `{found[0].param}`")
    return found[0] if found else None


def _of_format(given: ResponseFormat | None) -> list[Grammar]:
    if given is None or given.type == "text":
        return []
    if given.type == "json_object":
        return [Grammar("json_object", "", "response_format")]
    param = "response_format.json_schema"
    if given.json_schema is None:
        raise bad_field(param, "is required where `response_format.type` is json_schema")
    if given.json_schema.value is None:
        raise bad_field(f"{param}.schema", "is required")
    return [Grammar("json", _encoded(given.json_schema.value), f"{param}.schema")]


def _of_outputs(given: StructuredOutputs | None) -> list[Grammar]:
    if given is None:
        return []
    name = "structured_outputs"
    if given.structural_tag is not None:
        message = f"`{name}.structural_tag` is only for models whose engine has it"
        raise UnsupportedError(message, param=f"{name}.structural_tag")
    found = []
    if given.value is not None:
        found.append(Grammar("json", _encoded(given.value), f"{name}.json"))
    if given.json_object:
        found.append(Grammar("json_object", "", f"{name}.json_object"))
    if given.choice is not None:
        found.append(Grammar("choice", _encoded(given.choice), f"{name}.choice"))
    for kind, text in (("regex", given.regex), ("grammar", given.grammar)):
        if text is not None:
            found.append(Grammar(kind, text, f"{name}.{kind}"))
    if not found:
        raise bad_field(name, "must have one of json, json_object, regex, choice and grammar")
    return found


def _encoded(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
