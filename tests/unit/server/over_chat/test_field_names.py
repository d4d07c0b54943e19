"""Errors of the chat route name what the client sent to the API that it uses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.support.sample_models import Base, spec_of
from tests.support.servers import serve_asgi
from truthgpt_serve.errors import RequestError
from truthgpt_serve.server import create_app
from truthgpt_serve.server.over_chat.field_names import FieldNames
from truthgpt_serve.server.over_chat.messages.field_names import TABLE as MESSAGES_TABLE
from truthgpt_serve.server.over_chat.messages.request import chat_of_message
from truthgpt_serve.server.over_chat.responses.field_names import TABLE as RESPONSES_TABLE
from truthgpt_serve.server.over_chat.responses.request import chat_of_response

HI: Any = {"role": "user", "content": "hi"}
IMAGE = {"type": "image", "source": {"type": "url", "url": "https://x.example/a.png"}}
USE = {"type": "tool_use", "id": "t1", "name": "add", "input": {"a": 1}}
RESULT = {"type": "tool_result", "tool_use_id": "t1", "content": "2"}
THOUGHT = {"type": "thinking", "thinking": "hm", "signature": ""}
ADD: Any = {"name": "add", "input_schema": {"type": "object"}}
SCHEMA = {"type": "json_schema", "schema": {"type": "object"}}


class Tokens:
    """A template without tools, and a token for each letter."""

    chat_template = "x"

    @staticmethod
    def apply_chat_template(messages: Any, **_: Any) -> str:
        if any("error" in str(message["content"]) for message in messages):
            raise TemplateError("no errors")
        return " ".join(str(message["content"]) for message in messages)

    @staticmethod
    def encode(text: str) -> list[int]:
        return [ord(letter) for letter in text]


class TemplateError(Exception):
    """What jinja raises."""


class Short(Base):
    """Takes 200 letters."""

    tokenizer = Tokens()
    max_model_len = 200

    def infer(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {"text": "yes"}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serve_asgi(create_app(spec_of(Short), {}, name="m"), lifespan="on") as url:
        yield url


MESSAGES: list[tuple[dict[str, Any], str]] = [
    ({"model": 5}, "model"),
    ({"model": "other"}, "model"),
    ({"stream": "maybe"}, "stream"),
    ({"max_tokens": "many"}, "max_tokens"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"temperature": "hot"}, "temperature"),
    ({"top_p": 2}, "top_p"),
    ({"top_k": "x"}, "top_k"),
    ({"stop_sequences": [5]}, "stop_sequences"),
    ({"stop_sequences": [""]}, "stop_sequences"),
    ({"messages": [HI] * 2000}, "messages"),
    ({"messages": [{"role": "user", "content": "x" * 300}]}, "messages"),
    ({"messages": [{"role": "user", "content": "error"}]}, "messages"),
    ({"messages": [{"role": "user", "content": [IMAGE]}]}, "messages[0].content[0].type"),
    ({"messages": [HI, HI, {"role": "user", "content": [IMAGE]}]}, "messages[2].content[0].type"),
    ({"system": "A", "messages": [{"role": "user", "content": [IMAGE]}]}, "content[0].type"),
    ({"tools": [{**ADD, "name": "a b"}]}, "tools[0].name"),
    ({"tools": [ADD, {**ADD, "name": "x" * 300}]}, "tools[1].name"),
    ({"tools": [ADD], "tool_choice": {"type": "tool", "name": "b"}}, "tool_choice"),
    ({"output_config": {"format": SCHEMA}}, "output_config.format.schema"),
]
RESPONSES: list[tuple[dict[str, Any], str]] = [
    ({"model": 5}, "model"),
    ({"model": "other"}, "model"),
    ({"stream": "maybe"}, "stream"),
    ({"max_output_tokens": "many"}, "max_output_tokens"),
    ({"temperature": 9}, "temperature"),
    ({"top_p": -1}, "top_p"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"top_logprobs": -1}, "top_logprobs"),
    ({"include": ["message.output_text.logprobs"]}, "top_logprobs"),
    ({"parallel_tool_calls": 5, "tools": [{"type": "function", "name": "a"}]}, "parallel"),
    ({"tool_choice": "any", "tools": [{"type": "function", "name": "a"}]}, "tool_choice"),
    ({"tools": [{"type": "function", "name": "a b"}]}, "tools[0].name"),
    ({"tools": [{"type": "function", "name": "a", "description": 5}]}, "tools[0].description"),
    ({"tools": [{"type": "function", "name": "a", "parameters": 5}]}, "tools[0].parameters"),
    ({"input": "x" * 300}, "input"),
    ({"input": "error"}, "input"),
    (
        {"input": [HI, {"role": "user", "content": [{"type": "input_image", "image_url": "a"}]}]},
        "input[1].content[0].type",
    ),
    (
        {"text": {"format": {**SCHEMA, "name": "a"}}},
        "text.format.schema",
    ),
    (
        {"text": {"format": {**SCHEMA, "name": "a"}}, "instructions": "error"},
        "text.format.schema",
    ),
]


@pytest.mark.parametrize(("fields", "place"), MESSAGES)
def test_every_field_of_messages(url: str, fields: dict[str, Any], place: str) -> None:
    body = {"model": "m", "max_tokens": 5, "messages": [HI], **fields}
    for stream in (False, True):
        answer = httpx.post(f"{url}/v1/messages", json={"stream": stream, **body})
        assert answer.status_code in (400, 404)
        message = answer.json()["error"]["message"]
        assert place in message or place == "messages", message
        for name in ("function", "json_schema", "image_url", "response_format", "tools[0].func"):
            assert name not in message
        for name in fields.keys() & {"messages", "stop_sequences"}:
            assert f"`{name}" in message or name == "messages"


@pytest.mark.parametrize(("fields", "place"), RESPONSES)
def test_every_field_of_responses(url: str, fields: dict[str, Any], place: str) -> None:
    for stream in (False, True):
        body = {"model": "m", "input": "hi", "stream": stream, **fields}
        answer = httpx.post(f"{url}/v1/responses", json=body)
        assert answer.status_code in (400, 404)
        error = answer.json()["error"]
        assert error["param"].startswith(place), error
        for name in ("messages", "json_schema", "tools[0].function", "max_tokens"):
            assert f"`{name}" not in error["message"]


def named(names: FieldNames, place: str) -> str:
    """Returns the place that an error names, in its `param` and its words."""
    error = names.reword(RequestError(f"`{place}` is wrong (`serving.limits.x`)", param=place))
    assert error.message == f"`{error.param}` is wrong (`serving.limits.x`)" == str(error)
    return str(error.param)


def test_places_of_messages() -> None:
    said = {"role": "assistant", "content": [THOUGHT, {"type": "text", "text": "I"}, USE, USE]}
    told = {"role": "user", "content": [RESULT, {"type": "text", "text": "so?"}, IMAGE]}
    body = {"model": "m", "max_tokens": 5, "system": "A", "messages": [HI, said, told]}
    chat = chat_of_message(body)
    names = FieldNames(MESSAGES_TABLE, chat)
    assert "\0" not in str(chat)
    for place, sent in (
        ("max_completion_tokens", "max_tokens"),
        ("stop[1]", "stop_sequences[1]"),
        ("tools[2].function.parameters", "tools[2].input_schema"),
        ("tools[0].function.parameters.properties.a", "tools[0].input_schema.properties.a"),
        ("tool_choice.function.name", "tool_choice.name"),
        ("parallel_tool_calls", "tool_choice.disable_parallel_tool_use"),
        ("messages", "messages"),
        ("messages[0]", "system"),
        ("messages[0].content", "system"),
        ("messages[1].content", "messages[0].content"),
        ("messages[2].tool_calls[1].function.arguments", "messages[1].content[3].input"),
        ("messages.2.tool_calls.0.function.name", "messages[1].content[2].name"),
        ("messages[2].tool_calls[0].id", "messages[1].content[2].id"),
        ("messages[2].reasoning_content", "messages[1].content"),
        ("messages[3].content", "messages[2].content[0].content"),
        ("messages[3].tool_call_id", "messages[2].content[0].tool_use_id"),
        ("messages[4].content[0].text", "messages[2].content[1].text"),
        ("messages[4].content[1].image_url.url", "messages[2].content[2].source.url"),
        ("serving.limits.max_tokens", "serving.limits.max_tokens"),
    ):
        assert named(names, place) == sent


def test_places_of_responses() -> None:
    call = {"type": "function_call", "call_id": "c", "name": "add", "arguments": "{}"}
    told = {"type": "function_call_output", "call_id": "c", "output": "2"}
    parts = [{"type": "input_text", "text": "a"}, {"type": "input_image", "image_url": "b"}]
    items = [HI, call, told, {"role": "user", "content": parts}]
    chat = chat_of_response({"model": "m", "instructions": "Be.", "input": items})
    names = FieldNames(RESPONSES_TABLE, chat)
    assert "\0" not in str(chat)
    for place, sent in (
        ("messages", "input"),
        ("messages[0].content", "instructions"),
        ("messages[1].role", "input[0].role"),
        ("messages[2].tool_calls[0].function.arguments", "input[1].arguments"),
        ("messages[2].tool_calls[0].id", "input[1].call_id"),
        ("messages[3].content", "input[2].output"),
        ("messages[3].tool_call_id", "input[2].call_id"),
        ("messages[4].content[0].text", "input[3].content[0].text"),
        ("messages[4].content[1].image_url.url", "input[3].content[1].image_url"),
        ("response_format.json_schema.schema", "text.format.schema"),
        ("max_tokens", "max_output_tokens"),
        ("reasoning_effort", "reasoning.effort"),
        ("tool_choice.function.name", "tool_choice.name"),
        ("tools[0].function.strict", "tools[0].strict"),
    ):
        assert named(names, place) == sent
    plain = FieldNames(RESPONSES_TABLE, chat_of_response({"model": "m", "input": "hi"}))
    assert named(plain, "messages[0].content") == "input"


def test_parts_are_named_as_they_were_sent() -> None:
    document = {"type": "document", "source": {"type": "text", "data": "doc"}}
    text = {"type": "text", "text": "so"}
    turns = [HI, HI, {"role": "user", "content": [RESULT, document, IMAGE, text]}, HI]
    body = {"model": "m", "max_tokens": 9, "messages": [*turns, HI]}
    chat = chat_of_message(body)
    names = FieldNames(MESSAGES_TABLE, chat)
    [_, _, message] = chat["messages"]
    assert [part["type"] for part in message["content"]] == ["text", "image_url", "text"] + [
        "text"
    ] * 2
    assert [names.sent(f"messages[2].content[{at}].text") for at in range(5)] == [
        "messages[2].content[1].source.data",
        "messages[2].content[2].text",
        "messages[2].content[3].text",
        "messages[3].content",
        "messages[4].content",
    ]
    chat = chat_of_message({**body, "messages": [HI, *turns[:2], {**HI, "content": [IMAGE]}]})
    names = FieldNames(MESSAGES_TABLE, chat)
    assert names.sent("messages[0].content[0].text") == "messages[0].content"
    assert names.sent("messages[0].content[1].image_url") == "messages[3].content[0].source"
