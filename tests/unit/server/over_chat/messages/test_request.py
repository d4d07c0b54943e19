"""What a request for Anthropic's Messages API is on the chat route."""

from __future__ import annotations

import time
from typing import Any

import pytest

from truthgpt_serve.errors import RequestError, UnsupportedError
from truthgpt_serve.server.over_chat.field_names import FieldNames
from truthgpt_serve.server.over_chat.messages.request import chat_of_message, tokenize_of_message

USER: Any = {"role": "user", "content": "hi"}
TOOL = {"name": "add", "description": "Adds.", "input_schema": {"type": "object"}}
USE = {"type": "tool_use", "id": "t1", "name": "add", "input": {"a": 1}}


def chat(**fields: Any) -> dict[str, Any]:
    found = chat_of_message({"model": "m", "max_tokens": 5, "messages": [USER], **fields})
    FieldNames({}, found)  # takes out where things came from
    return found


def test_fields() -> None:
    found = chat(
        system=[{"type": "text", "text": "A"}, {"type": "text", "text": "B"}],
        stop_sequences=["x"],
        temperature=0.5,
        top_k=3,
        stream=True,
        metadata={"user_id": "u"},
        thinking={"type": "disabled"},
    )
    assert found == {
        "model": "m",
        "max_tokens": 5,
        "temperature": 0.5,
        "top_k": 3,
        "stream": True,
        "stream_options": {"include_usage": True},
        "stop": ["x"],
        "messages": [{"role": "system", "content": "A\n\nB"}, USER],
    }


def test_a_conversation_with_tools() -> None:
    result = {
        "type": "tool_result",
        "tool_use_id": "t1",
        "content": [{"type": "text", "text": "2"}],
    }
    failed = {"type": "tool_result", "tool_use_id": "t2", "is_error": True}
    thought = {"type": "thinking", "thinking": "hm", "signature": "s"}
    found = chat(
        messages=[
            USER,
            USER,
            {"role": "assistant", "content": [thought, {"type": "text", "text": "I add."}, USE]},
            {"role": "user", "content": [result, failed, {"type": "text", "text": "so?"}]},
        ],
        tools=[TOOL],
    )
    call = {"id": "t1", "type": "function", "function": {"name": "add", "arguments": '{"a":1}'}}
    assert found["messages"] == [
        {"role": "user", "content": "hi\n\nhi"},
        {
            "role": "assistant",
            "content": "I add.",
            "reasoning_content": "hm",
            "tool_calls": [call],
        },
        {"role": "tool", "tool_call_id": "t1", "content": "2"},
        {"role": "tool", "tool_call_id": "t2", "content": "error"},
        {"role": "user", "content": "so?"},
    ]
    function = {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}
    assert found["tools"] == [{"type": "function", "function": function}]


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"type": "auto"}, {"tool_choice": "auto"}),
        ({"type": "none"}, {"tool_choice": "none"}),
        (
            {"type": "any", "disable_parallel_tool_use": True},
            {"tool_choice": "required", "parallel_tool_calls": False},
        ),
        (
            {"type": "tool", "name": "add"},
            {"tool_choice": {"type": "function", "function": {"name": "add"}}},
        ),
    ],
)
def test_tool_choice(choice: Any, expected: Any) -> None:
    found = chat(tools=[TOOL], tool_choice=choice)
    assert {name: found[name] for name in found if "choice" in name or "parallel" in name} == (
        expected
    )


def test_images_and_documents() -> None:
    source = {"type": "base64", "media_type": "image/png", "data": "AA=="}
    document = {"type": "document", "source": {"type": "text", "data": "doc"}}
    content = [{"type": "image", "source": source}, document]
    [message] = chat(messages=[{"role": "user", "content": content}])["messages"]
    assert message["content"] == [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
        {"type": "text", "text": "doc"},
    ]


def test_messages_of_the_user_that_follow_each_other_are_one() -> None:
    image = {"type": "image", "source": {"type": "url", "url": "http://x/y.png"}}
    mixed = {"role": "user", "content": [image]}
    part = {"type": "image_url", "image_url": {"url": "http://x/y.png"}}
    text = {"type": "text", "text": "hi"}
    [message] = chat(messages=[USER, USER, mixed, USER, USER])["messages"]
    assert message["content"] == [{"type": "text", "text": "hi\n\nhi"}, part, text, text]
    [message] = chat(messages=[mixed, USER])["messages"]
    assert message["content"] == [part, text]


@pytest.mark.parametrize("with_image", [False, True])
def test_joining_takes_time_in_proportion(with_image: bool) -> None:
    image = {"type": "image", "source": {"type": "url", "url": "http://x/y.png"}}
    first = [{"role": "user", "content": [image]}] if with_image else []

    def seconds(number: int) -> float:
        messages = [*first, *[{"role": "user", "content": "x" * 2000}] * number]
        best = float("inf")
        for _ in range(3):
            started = time.process_time()
            chat(messages=messages)
            best = min(best, time.process_time() - started)
        return best

    assert seconds(16_000) < 24 * seconds(2000)


def test_structured_output() -> None:
    form = {"type": "json_schema", "schema": {"type": "object"}}
    for fields in ({"output_config": {"format": form}}, {"output_format": form}):
        found = chat(**fields)["response_format"]
        assert found["json_schema"]["schema"] == {"type": "object"}


def test_counting_needs_no_limit() -> None:
    found = tokenize_of_message({"model": "m", "messages": [USER], "tools": [TOOL], "system": "A"})
    FieldNames({}, found)
    assert list(found) == ["model", "messages", "tools"]
    assert found["messages"][0] == {"role": "system", "content": "A"}
    with pytest.raises(RequestError) as raised:
        tokenize_of_message({"model": "m", "messages": [{"role": "user", "content": []}]})
    assert raised.value.param == "messages[0].content"


def test_an_answer_goes_on_with_what_the_assistant_has_said() -> None:
    begun = {"role": "assistant", "content": "Once"}
    found = chat(messages=[USER, begun])
    assert found["messages"][-1] == begun
    assert (found["continue_final_message"], found["add_generation_prompt"]) == (True, False)
    counted = tokenize_of_message({"model": "m", "messages": [USER, begun]})
    assert counted["continue_final_message"]
    assert "continue_final_message" not in chat(messages=[USER])


CALL = {"type": "tool_use", "id": "t", "name": "f", "input": {}}
WEB = {"type": "web_search_20250305", "name": "web_search"}
PDF = {"type": "document", "source": {"type": "base64", "data": ""}}


@pytest.mark.parametrize(
    ("fields", "param", "kind"),
    [
        ({"max_tokens": None}, "max_tokens", RequestError),
        ({"stop_sequences": ""}, "stop_sequences", RequestError),
        ({"stop_sequences": {}}, "stop_sequences", RequestError),
        ({"tools": 0}, "tools", RequestError),
        ({"tools": {}}, "tools", RequestError),
        ({"tool_choice": "any"}, "tool_choice", RequestError),
        ({"system": 0}, "system", RequestError),
        ({"system": {}}, "system", RequestError),
        ({"thinking": "off"}, "thinking", RequestError),
        ({"output_config": False}, "output_config", RequestError),
        ({"output_config": {"format": 0}}, "output_config.format", RequestError),
        ({"output_format": ""}, "output_format", RequestError),
        ({"messages": None}, "messages", RequestError),
        ({"messages": []}, "messages", RequestError),
        ({"messages": [5]}, "messages[0]", RequestError),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0].role", RequestError),
        ({"messages": [{"role": "user"}]}, "messages[0].content", RequestError),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content", RequestError),
        (
            {"messages": [USER, {"role": "user", "content": []}], "system": "A"},
            "messages[1].content",
            RequestError,
        ),
        ({"messages": [USER, {"role": "assistant", "content": [CALL]}]}, "messages", RequestError),
        (
            {"messages": [{"role": "user", "content": [PDF]}]},
            "messages[0].content[0].type",
            UnsupportedError,
        ),
        ({"system": [{"type": "image"}]}, "system[0].type", UnsupportedError),
        ({"tools": [WEB]}, "tools[0].type", UnsupportedError),
        ({"tools": [{"name": "a"}]}, "tools[0].input_schema", RequestError),
        ({"tools": [TOOL], "tool_choice": {"type": "x"}}, "tool_choice.type", RequestError),
        ({"output_format": {"type": "x"}}, "output_format.type", RequestError),
        ({"stop_sequences": "x"}, "stop_sequences", RequestError),
    ],
)
def test_errors_name_the_place(fields: Any, param: str, kind: type[RequestError]) -> None:
    with pytest.raises(kind) as raised:
        chat(**fields)
    assert raised.value.param == param
    assert type(raised.value) is kind
