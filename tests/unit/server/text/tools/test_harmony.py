"""Answers in gpt-oss's form: in pieces of every size, and from a real model over HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import transformers

from deployments.vllm.tiny_model import make_tiny_llama
from tests.support.sample_models import Base, spec_of
from tests.support.servers import serve_asgi
from truthgpt_serve.server import create_app
from truthgpt_serve.server.text.tools.harmony import HarmonyReader
from truthgpt_serve.server.text.tools.json_call import MAX_HELD_CALL

THOUGHT = "<|channel|>analysis<|message|>I <think.<|end|><|start|>assistant"
FINAL = "<|channel|>final<|message|>"
ADD = '<|channel|>commentary to=functions.add <|constrain|>json<|message|>{"a": "<|end"}'
CASES: dict[str, tuple[str, str, str, list[list[str]]]] = {
    "an answer": (f"{THOUGHT}{FINAL}Yes <|no.<|return|>", "I <think.", "Yes <|no.", []),
    "cut off": (f"{THOUGHT}{FINAL}Yes", "I <think.", "Yes", []),
    "cut off within thoughts": ("<|channel|>analysis<|message|>I", "I", "", []),
    "cut off within a head": (f"{THOUGHT}<|channel|>fin", "I <think.", "", []),
    "a call": (f"{THOUGHT}{ADD}<|call|>", "I <think.", "", [["add", '{"a": "<|end"}']]),
    "a call in the head of the role": (
        f"{THOUGHT} to=functions.add<|channel|>commentary json<|message|>{{}}",
        "I <think.",
        "",
        [["add", "{}"]],
    ),
    "said before a call": (
        f"{THOUGHT}<|channel|>commentary<|message|>I add.<|end|><|start|>assistant{ADD}<|call|>",
        "I <think.",
        "I add.",
        [["add", '{"a": "<|end"}']],
    ),
    "one call at most": (
        f"{ADD}<|call|><|start|>assistant{ADD}",
        "",
        "",
        [["add", '{"a": "<|end"}']],
    ),
    "no arguments": (
        "<|channel|>commentary to=functions.add<|message|>none<|call|>",
        "",
        "none",
        [],
    ),
    "another function": (
        "<|channel|>commentary to=browser.open<|message|>{}<|call|>",
        "",
        "{}",
        [],
    ),
    "plain text": ("Hello there.", "", "Hello there.", []),
    "nothing": ("", "", "", []),
}


@pytest.mark.parametrize("size", [1, 2, 3, 5, 1000])
@pytest.mark.parametrize(("text", "thought", "said", "calls"), CASES.values(), ids=CASES)
def test_reading(text: str, thought: str, said: str, calls: list[list[str]], size: int) -> None:
    reader = HarmonyReader({"add"}, max_held=MAX_HELD_CALL)
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    deltas = [delta for group in (*map(reader.feed, pieces), reader.finish()) for delta in group]
    assert "".join(delta.thought for delta in deltas) == thought
    assert "".join(delta.text for delta in deltas) == said
    found: list[list[str]] = []
    for delta in deltas:
        if delta.name:
            found.append([delta.name, ""])
        if delta.arguments:
            found[-1][1] += delta.arguments
    assert found == calls
    assert reader.num_calls == len(calls)


TEMPLATE = """{%- for tool in tools or [] %}{{- tool | tojson }}{%- endfor %}
{%- for message in messages %}
{%- if message.role == 'tool' %}
{{- '<|start|>functions to=assistant<|message|>' + message.content }}
{%- elif message.tool_calls %}
{{- '<|start|>assistant to=functions.' + message.tool_calls[0].function.name }}
{{- '<|channel|>commentary json<|message|>' }}
{{- message.tool_calls[0].function.arguments | tojson + '<|call|>' }}
{%- elif message.role == 'assistant' %}
{{- '<|start|>assistant<|channel|>final<|message|>' + message.content + '<|end|>' }}
{%- else %}{{- '<|start|>' + message.role + '<|message|>' + message.content + '<|end|>' }}
{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant' }}{%- endif %}"""
TOOL: Any = {"type": "function", "function": {"name": "add", "description": "Adds."}}
OTHER: Any = {"type": "function", "function": {"name": "sub", "description": "Subtracts."}}
ASK: Any = [{"role": "user", "content": "1 + 1?"}]


class Oss(Base):
    """Answers as gpt-oss does, by how the prompt ends."""

    tokenizer: Any = None
    repeats_prompt = False

    def infer(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {"text": "".join(item["text"] for item in self.stream(inputs))}

    def stream(self, inputs: dict[str, Any]) -> Iterator[dict[str, Any]]:
        prompt = inputs["text"]
        text = f"{THOUGHT}{FINAL}Two.<|return|>"
        if prompt.endswith("to=functions.add<|channel|>commentary <|constrain|>json<|message|>"):
            text = '{"a": 1}<|call|>'
        elif prompt.endswith(" to=functions."):
            text = 'sub<|channel|>commentary json<|message|>{"a": 2}<|call|>'
        elif prompt.endswith(f"{FINAL}It"):
            text = " is.<|return|>"
        elif '"add"' in prompt and "<|call|>" not in prompt:
            text = f"{THOUGHT}{ADD}<|call|>"
        for at in range(0, len(text), 4):
            yield {"text": text[at : at + 4]}


@pytest.fixture(scope="module")
def gpt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    folder: Path = make_tiny_llama(tmp_path_factory.mktemp("text"))
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<|channel|>", "<|message|>", "<|start|>", "<|end|>"])
    tokenizer.chat_template = TEMPLATE
    Oss.tokenizer = tokenizer
    with (
        serve_asgi(create_app(spec_of(Oss), {}, name="oss"), lifespan="on") as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


def answer(gpt: openai.OpenAI, stream: bool, **fields: Any) -> Any:
    if not stream:
        return gpt.chat.completions.create(model="oss", **fields).choices[0]
    with gpt.chat.completions.stream(model="oss", **fields) as events:
        return events.get_final_completion().choices[0]


@pytest.mark.parametrize("stream", [False, True])
def test_chats(gpt: openai.OpenAI, stream: bool) -> None:
    plain = answer(gpt, stream, messages=ASK)
    assert (plain.message.content, plain.finish_reason) == ("Two.", "stop")
    assert plain.message.reasoning == "I <think."
    called = answer(gpt, stream, messages=ASK, tools=[TOOL])
    [call] = called.message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("add", {"a": "<|end"})
    assert called.finish_reason == "tool_calls"
    said = {
        "role": "assistant",
        "tool_calls": [call.model_dump(include={"id", "type", "function"})],
    }
    said["tool_calls"][0]["function"].pop("parsed_arguments", None)
    chat = [*ASK, said, {"role": "tool", "tool_call_id": call.id, "content": "2"}]
    assert answer(gpt, stream, messages=chat, tools=[TOOL]).message.content == "Two."


@pytest.mark.parametrize("stream", [False, True])
def test_forced_calls_and_answers_that_go_on(gpt: openai.OpenAI, stream: bool) -> None:
    named = {"type": "function", "function": {"name": "add"}}
    for choice, name, arguments in ((named, "add", {"a": 1}), ("required", "sub", {"a": 2})):
        tools = [TOOL, OTHER]
        found = answer(gpt, stream, messages=ASK, tools=tools, tool_choice=choice)
        [call] = found.message.tool_calls
        assert (call.function.name, json.loads(call.function.arguments)) == (name, arguments)
    begun = [*ASK, {"role": "assistant", "content": "It"}]
    goes_on = {"continue_final_message": True, "add_generation_prompt": False}
    found = answer(gpt, stream, messages=begun, extra_body=goes_on)
    assert found.message.content == " is."
