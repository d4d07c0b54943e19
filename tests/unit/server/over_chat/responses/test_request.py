"""What a request for OpenAI's Responses API is on the chat route."""

from __future__ import annotations

from typing import Any

import pytest

from truthgpt_serve.errors import RequestError, UnsupportedError
from truthgpt_serve.server.over_chat.field_names import FieldNames
from truthgpt_serve.server.over_chat.responses.request import chat_of_response

USER: Any = {"role": "user", "content": "hi"}
TOOL = {"type": "function", "name": "add", "parameters": {"type": "object"}, "strict": True}


def chat(**fields: Any) -> dict[str, Any]:
    found = chat_of_response({"model": "m", "input": "hi", **fields})
    FieldNames({}, found)  # takes out where things came from
    return found


def test_fields() -> None:
    found = chat(
        instructions="Be.",
        max_output_tokens=5,
        temperature=0.5,
        stream=True,
        top_logprobs=2,
        reasoning={"effort": "low"},
        store=True,
        user="u",
    )
    assert found == {
        "model": "m",
        "max_tokens": 5,
        "temperature": 0.5,
        "stream": True,
        "stream_options": {"include_usage": True},
        "logprobs": True,
        "top_logprobs": 2,
        "reasoning_effort": "low",
        "messages": [{"role": "system", "content": "Be."}, USER],
    }


def test_fields_of_sampling_that_vllm_takes() -> None:
    fields = {"top_k": 5, "seed": 1, "stop": ["x"], "logit_bias": {"1": 2}, "min_p": 0.5}
    assert chat(**fields) == {"model": "m", "messages": [USER], **fields}


def call(number: int) -> dict[str, Any]:
    return {"type": "function_call", "call_id": f"c{number}", "name": "add", "arguments": "{}"}


def test_one_turn_of_the_assistant_is_one_message() -> None:
    text = {"type": "output_text", "text": "I add.", "annotations": []}
    said = {"type": "message", "role": "assistant", "id": "msg_1", "content": [text]}
    thinking = {"type": "reasoning_text", "text": "hm"}
    thought = {"type": "reasoning", "summary": [], "content": [thinking]}
    outputs = [
        {"type": "function_call_output", "call_id": "c1", "output": "2"},
        {
            "type": "function_call_output",
            "call_id": "c2",
            "output": [{"type": "input_text", "text": "3"}],
        },
    ]
    image = {"type": "input_image", "image_url": "https://x/y.png", "detail": "low"}
    look = {"role": "user", "content": [{"type": "input_text", "text": "see"}, image]}
    found = chat(input=[USER, thought, said, call(1), call(2), *outputs, said, said, look])
    calls = [
        {"id": f"c{n}", "type": "function", "function": {"name": "add", "arguments": "{}"}}
        for n in (1, 2)
    ]
    answer = {"role": "assistant", "content": "I add."}
    url = {"url": "https://x/y.png", "detail": "low"}
    assert found["messages"] == [
        USER,
        {**answer, "reasoning_content": "hm", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c1", "content": "2"},
        {"role": "tool", "tool_call_id": "c2", "content": "3"},
        answer,
        answer,
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "see"},
                {"type": "image_url", "image_url": url},
            ],
        },
    ]


def test_tools() -> None:
    function = {"name": "add", "parameters": {"type": "object"}, "strict": True}
    other = {**TOOL, "name": "sub"}
    assert chat(tools=[TOOL])["tools"] == [{"type": "function", "function": function}]
    assert "tool_choice" not in chat(tools=[TOOL])
    assert chat(tools=[TOOL], tool_choice="required")["tool_choice"] == "required"
    named = {"type": "function", "name": "add"}
    found = chat(tools=[TOOL], tool_choice=named, parallel_tool_calls=False)
    assert found["tool_choice"] == {"type": "function", "function": {"name": "add"}}
    assert found["parallel_tool_calls"] is False
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [named]}
    found = chat(tools=[other, TOOL], tool_choice=allowed)
    assert (len(found["tools"]), found["tool_choice"]) == (1, "required")
    names: list[Any] = [{}, [], 5, None]
    unnamed = [{"type": "function", "name": name} for name in names]
    found = chat(tools=[other, TOOL], tool_choice={**allowed, "tools": [*unnamed, named]})
    assert [tool["function"]["name"] for tool in found["tools"]] == ["add"]


def test_log_probabilities_are_included() -> None:
    assert chat(include=["message.output_text.logprobs"])["logprobs"] is True
    for include in (None, [], ["reasoning.encrypted_content", {}]):
        assert "logprobs" not in chat(include=include)


def test_formats() -> None:
    schema = {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}
    found = chat(text={"format": schema})["response_format"]
    described = {"name": "n", "schema": {"type": "object"}, "strict": True}
    assert found == {"type": "json_schema", "json_schema": described}
    assert "response_format" not in chat(text={"format": {"type": "text"}})
    found = chat(text={"format": {"type": "json_object"}})
    assert found["response_format"] == {"type": "json_object"}


@pytest.mark.parametrize(
    ("fields", "param", "kind"),
    [
        ({"input": None}, "input", RequestError),
        ({"input": []}, "input", RequestError),
        ({"input": [5]}, "input[0]", RequestError),
        ({"input": [{"role": "x", "content": "a"}]}, "input[0].role", RequestError),
        ({"input": [{"role": "user"}]}, "input[0].content", RequestError),
        ({"input": [{"type": "item_reference"}]}, "input[0].type", UnsupportedError),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file"}]}]},
            "input[0].content[0].type",
            UnsupportedError,
        ),
        ({"input": [{"type": "function_call"}]}, "input[0].name", RequestError),
        ({"max_output_tokens": "x"}, "max_output_tokens", RequestError),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", UnsupportedError),
        ({"tools": [TOOL], "tool_choice": {"type": "mcp"}}, "tool_choice.type", UnsupportedError),
        (
            {"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "tools": [TOOL] * 513}},
            "tool_choice.tools",
            RequestError,
        ),
        ({"include": True}, "include", RequestError),
        ({"tools": 0}, "tools", RequestError),
        ({"tools": {}}, "tools", RequestError),
        ({"reasoning": ""}, "reasoning", RequestError),
        ({"reasoning": []}, "reasoning", RequestError),
        ({"instructions": 0}, "instructions", RequestError),
        ({"text": []}, "text", RequestError),
        ({"include": 5}, "include", RequestError),
        ({"include": "message.output_text.logprobs"}, "include", RequestError),
        ({"conversation": "c"}, "conversation", UnsupportedError),
        ({"background": True}, "background", UnsupportedError),
        ({"prompt": {"id": "p"}}, "prompt", UnsupportedError),
        ({"text": {"format": {"type": "x"}}}, "text.format.type", RequestError),
    ],
)
def test_errors_name_the_place(fields: Any, param: str, kind: type[RequestError]) -> None:
    with pytest.raises(kind) as raised:
        chat(**fields)
    assert raised.value.param == param
    assert type(raised.value) is kind
