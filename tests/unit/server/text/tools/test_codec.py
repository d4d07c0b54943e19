"""Agents' whole turns with a class that calls tools: over chat, responses and messages."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import openai
import pytest
import transformers

from deployments.vllm.tiny_model import make_tiny_llama
from tests.support.sample_models import Base, spec_of
from tests.support.servers import serve_asgi
from truthgpt_serve.server import create_app

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL: Any = {
    "type": "function",
    "function": {"name": "get_weather", "description": "The weather.", "parameters": PARAMETERS},
}
CLOCK: Any = {"type": "function", "function": {"name": "get_time"}}
ASK: Any = [{"role": "user", "content": "The weather in Oslo and Rome?"}]
CITIES = ["Oslo", "Rome" + " and on" * 500]
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "%s"}}\n</tool_call>'


class Agent(Base):
    """Calls a tool for each city, where it was told of one, and then says what it was told."""

    default_max_new_tokens = 4096

    def infer(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {"text": "".join(item["text"] for item in self.stream(inputs))}

    def stream(self, inputs: dict[str, Any]) -> Iterator[dict[str, Any]]:
        prompt = inputs["text"]
        type(self).last = prompt
        text = "No tools."
        if prompt.endswith('"get_weather", "arguments": '):
            text = '{"city": "Oslo"}}\n</tool_call>'
        elif prompt.endswith('{"name": "'):
            text = 'get_time", "arguments": {}}\n</tool_call>'
        elif "<tool_response>\nsunny" in prompt:
            text = "It is sunny."
        elif '"get_weather"' in prompt:
            first, second = CITIES
            text = f"I look.\n{CALL % first}\n{CALL % second}"
        for at in range(0, len(text), 5):
            yield {"text": text[at : at + 5]}


class Templated(Agent):
    """The same with a tokenizer, whose template tells of tools."""

    tokenizer: Any = None


@pytest.fixture(scope="module", params=[Agent, Templated])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if request.param is Templated:
        folder = make_tiny_llama(tmp_path_factory.mktemp("text"))
        Templated.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    app = create_app(spec_of(request.param), {}, name="agent")
    with serve_asgi(app, lifespan="on") as url:
        yield url


@pytest.fixture
def gpt(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def claude(url: str) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=url, api_key="none", max_retries=0) as client:
        yield client


@pytest.mark.parametrize("stream", [False, True])
def test_a_chat(gpt: openai.OpenAI, stream: bool) -> None:
    fields: Any = {"model": "agent", "messages": ASK, "tools": [TOOL, CLOCK]}
    if stream:
        with gpt.chat.completions.stream(**fields) as events:
            choice: Any = events.get_final_completion().choices[0]
    else:
        choice = gpt.chat.completions.create(**fields).choices[0]
    assert (choice.message.content, choice.finish_reason) == ("I look.", "tool_calls")
    calls = choice.message.tool_calls
    assert [call.function.name for call in calls] == ["get_weather"] * 2
    cities = [json.loads(call.function.arguments)["city"] for call in calls]
    assert cities == CITIES
    assert len({call.id for call in calls}) == 2

    told = [
        {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
        for call in choice.message.tool_calls
    ]
    said: Any = {
        "role": "assistant",
        "content": "I look.",
        "tool_calls": [
            {
                "id": call.id,
                "type": "function",
                "function": call.function.model_dump(include={"name", "arguments"}),
            }
            for call in calls
        ],
    }
    fields["messages"] = [*ASK, said, *told]
    last = gpt.chat.completions.create(**fields).choices[0]
    assert (last.message.content, last.finish_reason) == ("It is sunny.", "stop")
    assert last.message.tool_calls is None


def test_arguments_come_in_pieces(gpt: openai.OpenAI) -> None:
    chunks = list(
        gpt.chat.completions.create(model="agent", messages=ASK, tools=[TOOL], stream=True)
    )
    deltas = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
    names = [delta.function.name for delta in deltas if delta.function and delta.function.name]
    assert names == ["get_weather"] * 2
    assert [delta.index for delta in deltas if delta.id] == [0, 1]
    assert len(deltas) > 6, "a long call comes in pieces"
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_choices(gpt: openai.OpenAI) -> None:
    fields: Any = {"model": "agent", "messages": ASK, "tools": [TOOL, CLOCK]}
    create = gpt.chat.completions.create
    none = create(**fields, tool_choice="none").choices[0]
    assert (none.message.content, none.message.tool_calls) == ("No tools.", None)
    single: Any = create(**fields, parallel_tool_calls=False).choices[0]
    assert [call.function.arguments for call in single.message.tool_calls or []] == [
        '{"city": "Oslo"}'
    ]
    named: Any = {"type": "function", "function": {"name": "get_weather"}}
    for stream in (False, True):
        choices: Any = ((named, "get_weather"), ("required", "get_time"))
        for choice, name in choices:
            if stream:
                with gpt.chat.completions.stream(**fields, tool_choice=choice) as events:
                    found: Any = events.get_final_completion().choices[0]
            else:
                found = create(**fields, tool_choice=choice).choices[0]
            [call] = found.message.tool_calls
            assert (call.function.name, found.finish_reason) == (name, "tool_calls")
            json.loads(call.function.arguments)
    only = create(**{**fields, "tools": [TOOL]}, tool_choice="required").choices[0]
    assert only.message.tool_calls is not None


@pytest.mark.parametrize("stream", [False, True])
def test_a_response(gpt: openai.OpenAI, stream: bool) -> None:
    tool = {"type": "function", **TOOL["function"], "strict": False}
    fields: Any = {"model": "agent", "input": ASK, "tools": [tool]}
    if stream:
        with gpt.responses.stream(**fields) as events:
            answer: Any = events.get_final_response()
    else:
        answer = gpt.responses.create(**fields)
    text, first, second = answer.output
    assert (answer.output_text, text.type) == ("I look.", "message")
    assert json.loads(second.arguments) == {"city": CITIES[1]}
    outputs = [
        {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
        for call in (first, second)
    ]
    items = [item.model_dump(exclude_none=True) for item in answer.output]
    for item in items:
        item.pop("parsed_arguments", None)
    last = gpt.responses.create(**{**fields, "input": [*ASK, *items, *outputs]})
    assert (last.output_text, last.status) == ("It is sunny.", "completed")


@pytest.mark.parametrize("stream", [False, True])
def test_a_message(claude: anthropic.Anthropic, stream: bool) -> None:
    tool: Any = {"name": "get_weather", "input_schema": PARAMETERS}
    fields: Any = {"model": "agent", "max_tokens": 4096, "tools": [tool]}
    if stream:
        with claude.messages.stream(messages=ASK, **fields) as events:
            answer: Any = events.get_final_message()
    else:
        answer = claude.messages.create(messages=ASK, **fields)
    _, first, second = answer.content
    assert answer.stop_reason == "tool_use"
    assert (first.name, first.input, second.input) == (
        "get_weather",
        {"city": "Oslo"},
        {"city": CITIES[1]},
    )
    results: Any = [
        {"type": "tool_result", "tool_use_id": call.id, "content": "sunny"}
        for call in (first, second)
    ]
    said: Any = {"role": "assistant", "content": answer.content}
    chat = [*ASK, said, {"role": "user", "content": results}]
    last: Any = claude.messages.create(messages=chat, **fields)
    assert (last.content[0].text, last.stop_reason) == ("It is sunny.", "end_turn")
    forced = claude.messages.create(messages=ASK, tool_choice={"type": "any"}, **fields)
    assert [block.type for block in forced.content] == ["tool_use"]


def test_errors(url: str) -> None:
    named = {"type": "function", "function": {"name": "nosuch"}}
    for fields, param in (
        ({"tools": [TOOL], "tool_choice": named}, "tool_choice"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tool_choice": "required"}, "tool_choice"),
    ):
        body = {"model": "agent", "messages": ASK, **fields}
        answer = httpx.post(f"{url}/v1/chat/completions", json=body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_counting_tokens_with_tools(url: str, claude: anthropic.Anthropic) -> None:
    tool: Any = {"name": "get_weather", "input_schema": PARAMETERS}
    if "agent" in httpx.post(f"{url}/tokenize", json={"model": "agent", "prompt": "a"}).text:
        with pytest.raises(anthropic.BadRequestError, match="tokenizer"):
            claude.messages.count_tokens(model="agent", messages=ASK)
        return
    plain = claude.messages.count_tokens(model="agent", messages=ASK).input_tokens
    told = claude.messages.count_tokens(model="agent", messages=ASK, tools=[tool]).input_tokens
    answer = claude.messages.create(model="agent", max_tokens=9, messages=ASK)
    assert (plain, told > plain + 20) == (answer.usage.input_tokens, True)
