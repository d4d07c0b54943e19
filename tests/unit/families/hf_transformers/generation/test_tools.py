"""Tools, responses and messages on the shipped story model, with the clients of both APIs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import jsonschema  # type: ignore[import-untyped]  # it has no types
import openai
import pytest
import transformers

from deployments.hf_transformers.engine import TextEngine  # noqa: F401 - its import takes long
from tests.support.grammar_schemas import small_schema
from tests.support.transformers_models import client_of, configuration

STORY = Path(__file__).parents[5] / "models" / "story"
ASK: Any = [{"role": "user", "content": "Tell me a story about Mia."}]
PARAMETERS = {"type": "object", "properties": {"name": {"type": "string"}}}
TOOL: Any = {"type": "function", "function": {"name": "tell", "parameters": PARAMETERS}}


@pytest.fixture(scope="module")
def gpt() -> Iterator[openai.OpenAI]:
    with client_of(configuration(STORY, default_max_new_tokens=12), name="story") as client:
        yield client


@pytest.fixture(scope="module")
def claude(gpt: openai.OpenAI) -> Iterator[anthropic.Anthropic]:
    url = str(gpt.base_url).removesuffix("/v1/")
    with anthropic.Anthropic(base_url=url, api_key="none", max_retries=0) as client:
        yield client


def test_other_apis_say_what_the_chat_says(gpt: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    chat = gpt.chat.completions.create(model="story", messages=ASK, max_tokens=8, temperature=0)
    said, counted = chat.choices[0].message.content, chat.usage
    assert said
    assert counted is not None
    response = gpt.responses.create(model="story", input=ASK, max_output_tokens=8, temperature=0)
    assert (response.output_text, response.status) == (said, "incomplete")
    fields: Any = {"model": "story", "messages": ASK, "max_tokens": 8}
    fields["extra_body"] = {"temperature": 0}
    message: Any = claude.messages.create(**fields)
    assert (message.content[0].text, message.stop_reason) == (said, "max_tokens")
    assert message.usage.input_tokens == counted.prompt_tokens
    with claude.messages.stream(**fields) as stream:
        assert "".join(stream.text_stream) == said
    count = claude.messages.count_tokens(model="story", messages=ASK)
    assert count.input_tokens == counted.prompt_tokens


@pytest.mark.long("writes hundreds of bound tokens")
def test_tools_that_the_template_does_not_know(
    gpt: openai.OpenAI, claude: anthropic.Anthropic
) -> None:
    plain = claude.messages.count_tokens(model="story", messages=ASK).input_tokens
    tool: Any = {"name": "tell", "input_schema": PARAMETERS}
    told = claude.messages.count_tokens(model="story", messages=ASK, tools=[tool]).input_tokens
    assert told > plain + 20
    free = gpt.chat.completions.create(model="story", messages=ASK, tools=[TOOL])
    assert free.choices[0].message.content or free.choices[0].message.tool_calls
    for choice in ("required", {"type": "function", "function": {"name": "tell"}}):
        fields: Any = {"model": "story", "messages": ASK, "tools": [TOOL], "tool_choice": choice}
        choice_made: Any = gpt.chat.completions.create(**fields).choices[0]
        [call] = choice_made.message.tool_calls
        assert call.function.name == "tell"


def test_a_forced_call_keeps_to_its_schema(gpt: openai.OpenAI) -> None:
    """The model knows nothing of JSON: what it writes is bound."""
    unit: Any = {"type": "object", "properties": {"unit": {"enum": ["metre", "mile"]}}}
    unit |= {"required": ["unit"], "additionalProperties": False}
    tools = [
        {"type": "function", "function": {"name": name, "parameters": unit}} for name in ("a", "b")
    ]
    named = {"type": "function", "function": {"name": "b"}}
    fields: Any = {"model": "story", "messages": ASK, "tools": tools, "max_tokens": 100}
    choices: Any = (("required", ("a", "b")), (named, ("b",)))
    for choice, names in choices:
        found: Any = gpt.chat.completions.create(**fields, tool_choice=choice).choices[0]
        [call] = found.message.tool_calls
        assert call.function.name in names
        assert json.loads(call.function.arguments)["unit"] in ("metre", "mile")
        assert (found.message.content, found.finish_reason) == (None, "tool_calls")


TAGS = """{%- for tool in tools or [] %}{{- tool | tojson }}{%- endfor %}
{%- for message in messages %}{{- message.content or '' }}
{%- for call in message.tool_calls or [] %}
{{- '<tool_call>\\n<function=' + call.function.name + '>\\n' }}
{%- for key, value in call.function.arguments.items() %}
{{- '<parameter=' + key + '>\\n' + value + '\\n</parameter>\\n' }}{%- endfor %}
{{- '</function>\\n</tool_call>' }}{%- endfor %}{%- endfor %}"""
"""Renders calls as Qwen3-Coder writes them."""


@pytest.mark.long("writes hundreds of bound tokens")
@pytest.mark.parametrize("stream", [False, True])
def test_a_forced_call_in_tags_keeps_to_its_schema(tmp_path: Path, stream: bool) -> None:
    folder = tmp_path / "story"
    shutil.copytree(STORY, folder)
    config = json.loads((folder / "config.json").read_text())
    longer = {**config, "max_position_embeddings": 4096}  # schemas take more than its 1024 tokens
    (folder / "config.json").write_text(json.dumps(longer))
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder, model_max_length=4096)
    tokenizer.chat_template = TAGS
    tokenizer.save_pretrained(folder)
    with client_of(configuration(folder), name="story") as client:
        named: Any = {"type": "function", "function": {"name": "b"}}
        for seed, choice, names in ((0, "required", ("a", "b")), (1, named, ("b",))):
            schema = small_schema(seed)
            tools: Any = [
                {"type": "function", "function": {"name": name, "parameters": schema}}
                for name in ("a", "b")
            ]
            given: Any = {"model": "story", "messages": ASK, "tools": tools, "max_tokens": 600}
            given |= {"tool_choice": choice, "seed": seed}
            if stream:
                with client.chat.completions.stream(**given) as events:
                    found: Any = events.get_final_completion().choices[0]
            else:
                found = client.chat.completions.create(**given).choices[0]
            [call] = found.message.tool_calls
            assert call.function.name in names
            jsonschema.validate(json.loads(call.function.arguments), schema)
            assert (found.message.content or "", found.finish_reason) == ("", "tool_calls")


@pytest.mark.long("writes hundreds of bound tokens")
def test_an_answer_in_json_or_a_call(gpt: openai.OpenAI) -> None:
    schema: Any = {"type": "object", "properties": {"ok": {"type": "boolean"}}}
    schema |= {"required": ["ok"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    fields: Any = {"model": "story", "messages": ASK, "tools": [TOOL], "response_format": form}
    for seed in range(8):
        found: Any = gpt.chat.completions.create(**fields, seed=seed, max_tokens=200).choices[0]
        if found.message.tool_calls:
            assert {call.function.name for call in found.message.tool_calls} == {"tell"}
        else:
            assert set(json.loads(found.message.content)) == {"ok"}
