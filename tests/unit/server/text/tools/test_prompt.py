"""What real tokenizers' templates say of tools, and how the others are told in words."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import transformers

from deployments.vllm.tiny_model import make_tiny_llama
from truthgpt_serve.server.text.tokenizer import Tokenizer
from truthgpt_serve.server.text.tools.prompt import ToolTemplate
from truthgpt_serve.server.text.tools.template_form import find_form, takes_tools

TOOLS_FIRST = """{%- for tool in tools or [] %}{{- tool | tojson }}{%- endfor %}
{%- for message in messages %}{{- '<|' + message.role + '|>' + (message.content or '') }}
{%- for call in message.tool_calls or [] %}CALL{%- endfor %}{%- endfor %}"""
BEGIN, SEPARATOR, END = (
    f"<\N{FULLWIDTH VERTICAL LINE}{name}\N{FULLWIDTH VERTICAL LINE}>"
    for name in ("tool▁call▁begin", "tool▁sep", "tool▁call▁end")
)
DSML = "\N{FULLWIDTH VERTICAL LINE}DSML\N{FULLWIDTH VERTICAL LINE}"
CALLS = {
    "hermes": """{{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
{{- call.function.arguments | tojson }}{{- '}\\n</tool_call>' }}""",
    "qwen3_coder": """{{- '<tool_call>\\n<function=' + call.function.name + '>\\n' }}
{%- for key, value in call.function.arguments.items() %}
{{- '<parameter=' + key + '>\\n' + value + '\\n</parameter>\\n' }}{%- endfor %}
{{- '</function>\\n</tool_call>' }}""",
    "glm45": """{{- '<tool_call>' + call.function.name + '\\n' }}
{%- for key, value in call.function.arguments.items() %}
{{- '<arg_key>' + key + '</arg_key>\\n<arg_value>' + value + '</arg_value>\\n' }}{%- endfor %}
{{- '</tool_call>' }}""",
    "mistral": """{%- if call.id | length != 9 %}{{- raise_exception('ids have 9') }}{%- endif %}
{{- '[TOOL_CALLS] [{"name": "' + call.function.name + '", "arguments": ' }}
{{- call.function.arguments | tojson }}{{- ', "id": "' + call.id + '"}]' }}""",
    "seed_oss": """{{- '<seed:tool_call>\\n<function=' + call.function.name + '>\\n' }}
{%- for key, value in call.function.arguments | items %}
{{- '<parameter=' + key + '>' + value + '</parameter>\\n' }}{%- endfor %}
{{- '</function>\\n</seed:tool_call>' }}""",
    "minimax_m2": """{{- '<minimax:tool_call>\\n<invoke name="' + call.function.name + '">\\n' }}
{%- for key, value in call.function.arguments.items() %}
{{- '<parameter name="' + key + '">' + value + '</parameter>\\n' }}{%- endfor %}
{{- '</invoke>\\n</minimax:tool_call>' }}""",
    "deepseek_v3": f"""{{{{- '{BEGIN}' + call['type'] + '{SEPARATOR}' + call.function.name }}}}
{{{{- '\\n```json\\n' + call.function.arguments + '\\n```{END}' }}}}""",
    "deepseek_v31": f"""{{{{- '{BEGIN}' + call.function.name + '{SEPARATOR}' }}}}
{{{{- call.function.arguments + '{END}' }}}}""",
    "kimi_k2": """{{- '<|tool_call_begin|>' + call.id + '<|tool_call_argument_begin|>' }}
{%- if call.function.arguments is string %}{{- call.function.arguments }}{% else %}
{{- call.function.arguments | tojson }}{% endif %}{{- '<|tool_call_end|>' }}""",
    "internlm": """{{- '<|action_start|><|plugin|>\\n{"name": "' + call.function.name + '", ' }}
{{- '"arguments": ' + call.function.arguments | string + '}<|action_end|>' }}""",
    "longcat": """{{- '<longcat_tool_call>\\n{"name": "' + call.function.name }}
{{- '", "arguments": ' }}{{- call.function.arguments | tojson }}{{- '}' }}""",
    "tool_calls": """{{- '<tool_calls>[{"name": "' + call.function.name + '", "arguments": ' }}
{{- call.function.arguments | tojson }}{{- '}]</tool_calls>' }}""",
    "granite": """{{- '<|tool_call|>' + [call.function] | tojson(indent=4) }}""",
    "deepseek_v32": f"""{{{{- '<{DSML}function_calls>\\n<{DSML}invoke name="' }}}}
{{{{- call.function.name + '">\\n' }}}}{{%- for key, value in call.function.arguments.items() %}}
{{{{- '<{DSML}parameter name="' + key + '" string="true">' + value + '</{DSML}parameter>\\n' }}}}
{{%- endfor %}}{{{{- '</{DSML}invoke>\\n</{DSML}function_calls>' }}}}""",
    "deepseek_v4": f"""{{{{- '<{DSML}tool_calls>\\n<{DSML}invoke name="' }}}}
{{{{- call.function.name + '">\\n' }}}}{{%- for key, value in call.function.arguments.items() %}}
{{{{- '<{DSML}parameter name="' + key + '" string="true">' + value + '</{DSML}parameter>\\n' }}}}
{{%- endfor %}}{{{{- '</{DSML}invoke>\\n</{DSML}tool_calls>' }}}}""",
    "nemotron_json": """{{- '<TOOLCALL>[{"name": "' + call.function.name + '", "arguments": ' }}
{{- call.function.arguments | tojson }}{{- '}]</TOOLCALL>' }}""",
    "apertus": """{{- '<|tools_prefix|>[{"' + call.function.name + '": ' }}
{{- call.function.arguments | tojson + '}]<|tools_suffix|>' }}""",
    "functionary": """{{- '<function=' + call.function.name + '>' }}
{{- call.function.arguments | tojson + '</function>' }}""",
    "mirothinker": """{{- '\\n<use_mcp_tool>\\n<server_name>own</server_name>\\n<tool_name>' }}
{{- call.function.name + '</tool_name>\\n<arguments>\\n' + call.function.arguments | tojson }}
{{- '\\n</arguments>\\n</use_mcp_tool>' }}""",
    "gigachat3": """{{- 'function call<|role_sep|>\\n{"name": "' + call.function.name }}
{{- '", "arguments": ' + call.function.arguments | tojson + '}' }}""",
    "command_r": """{{- 'Action:\\n```json\\n[\\n    {\\n        "tool_name": "' }}
{{- call.function.name + '",\\n        "parameters": ' }}
{{- call.function.arguments | tojson }}{{- '\\n    }\\n]```' }}""",
    "openai": """{{- '<|start|>assistant to=functions.' + call.function.name }}
{{- '<|channel|>commentary json<|message|>' + call.function.arguments | tojson + '<|call|>' }}""",
    "cohere_command3": """{{- '<|START_ACTION|>[\\n    {"tool_call_id": "0", "tool_name": "' }}
{{- call.function.name + '", "parameters": ' + call.function.arguments | tojson }}
{{- '}\\n]<|END_ACTION|>' }}""",
    "gemma4": """{%- for key, value in call.function.arguments.items() %}
{{- '<|tool_call>call:' + call.function.name + '{' + key + ':<|"|>' + value + '<|"|>}' }}
{{- '<tool_call|>' }}{%- endfor %}""",
    "functiongemma": """{%- for key, value in call.function.arguments.items() %}
{{- '<start_function_call>call:' + call.function.name + '{' + key + ':<escape>' + value }}
{{- '<escape>}<end_function_call>' }}{%- endfor %}""",
    "olmo3": """{%- for key, value in call.function.arguments.items() %}
{{- '<function_calls>' + call.function.name + '(' + key + '="' + value + '")</function_calls>' }}
{%- endfor %}""",
    "lfm2": """{%- for key, value in call.function.arguments.items() %}
{{- '<|tool_call_start|>[' + call.function.name + '(' + key + "='" + value + "')]" }}
{%- endfor %}""",
    "llama3_json": """{{- '{"name": "' + call.function.name + '", "parameters": ' }}
{{- call.function.arguments | tojson }}{{- '}' }}""",
}
WORDY = CALLS["hermes"].replace("arguments | tojson", "arguments.strip()")
"""Handles arguments as a text."""
TOOL = {
    "type": "function",
    "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object"}},
}
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
CHAT: list[dict[str, Any]] = [
    {"role": "user", "content": "1 + 1?"},
    {"role": "assistant", "content": "I add.", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c1", "content": "2"},
    {"role": "user", "content": "so?"},
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = make_tiny_llama(tmp_path_factory.mktemp("text"))
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("name", CALLS)
def test_the_form_of_a_template(tokenizer: Any, name: str) -> None:
    for call in (CALLS[name], WORDY) if name == "hermes" else (CALLS[name],):
        tokenizer.chat_template = TOOLS_FIRST.replace("CALL", call)
        apply = tokenizer.apply_chat_template
        form = find_form(apply)
        assert form is not None
        assert (form.name, takes_tools(apply)) == (name, True)
        assert ToolTemplate(apply).form is form


def test_models_that_know_their_form_are_told_of_tools_in_words(tokenizer: Any) -> None:
    template = TOOLS_FIRST.replace("CALL", CALLS["deepseek_v31"])
    tokenizer.chat_template = template.replace("tools or []", "[]")
    tokens = Tokenizer(tokenizer)
    assert (tokens.tooling.takes_tools, tokens.tooling.form.name) == (False, "deepseek_v31")
    prompt = tokens.render(CHAT, [TOOL])
    assert f'{BEGIN}the name{SEPARATOR}{{"argument": "value"}}{END}' in prompt
    assert f'I add.{BEGIN}add{SEPARATOR}{{"a": 1}}{END}<|tool|>2' in prompt
    assert f'{BEGIN}add{SEPARATOR}{{"a": 1}}{END}<|tool|>2' in tokens.render(CHAT)


def test_templates_of_other_forms(tokenizer: Any) -> None:
    tokenizer.chat_template = TOOLS_FIRST
    template = ToolTemplate(tokenizer.apply_chat_template)
    assert (template.takes_tools, template.form.name) == (True, "json")
    tokenizer.chat_template = "{%- for message in messages %}{{- message.content }}{%- endfor %}"
    template = ToolTemplate(tokenizer.apply_chat_template)
    assert (template.takes_tools, template.form.name) == (False, "hermes")
    assert ToolTemplate(None).form.name == "hermes"
    tokenizer.chat_template = "{{- raise_exception('no') }}"
    assert ToolTemplate(tokenizer.apply_chat_template).takes_tools is False


@pytest.mark.parametrize(
    "told",
    [
        "When a tool is required, respond with <|tool_call|> followed by a JSON list of tools.",
        "When one is required, respond only with <|tool_call|> followed by a JSON list of tools.",
    ],
)
def test_granite_says_in_words_how_calls_are_written(tokenizer: Any, told: str) -> None:
    template = "{%- if tools %}{{- 'TOLD' + tools | tojson }}{%- endif %}"
    template += "{%- for message in messages %}{{- message.content }}{%- endfor %}"
    tokenizer.chat_template = template.replace("TOLD", told)
    form = ToolTemplate(tokenizer.apply_chat_template).form
    assert (form.name, form.begin) == ("granite", "<|tool_call|>")


def test_in_words() -> None:
    system, user, called, result = ToolTemplate(None).in_words(CHAT, [TOOL])
    assert system["role"] == "system"
    assert '{"name":"add","description":"Adds."' in system["content"]
    assert user == CHAT[0]
    assert called == {
        "role": "assistant",
        "content": 'I add.\n<tool_call>\n{"name":"add","arguments":{"a":1}}\n</tool_call>',
    }
    assert result == {"role": "user", "content": "<tool_response>\n2\n</tool_response>\nso?"}


def test_joining_in_words_takes_time_in_proportion() -> None:
    def seconds(number: int) -> float:
        chat = [{"role": "user", "content": "x" * 2000}] * number
        best = float("inf")
        for _ in range(3):
            started = time.process_time()
            ToolTemplate(None).in_words(chat, [TOOL])
            best = min(best, time.process_time() - started)
        return best

    assert seconds(16_000) < 24 * seconds(2000)


def test_in_words_where_there_is_a_system_message_or_no_place_for_one(tokenizer: Any) -> None:
    chat = [{"role": "system", "content": "Be."}, CHAT[0]]
    system, _ = ToolTemplate(None).in_words(chat, [TOOL])
    assert system["content"].startswith("Be.\n\nYou can call")
    tokenizer.chat_template = """{%- for message in messages if message.role != 'system' %}
{{- message.content }}{%- endfor %}"""
    [user] = ToolTemplate(tokenizer.apply_chat_template).in_words(CHAT[:1], [TOOL])
    assert user["content"].startswith("You can call")
    assert user["content"].endswith("\n\n1 + 1?")


HERMES_3 = """{%- macro kind(spec) %}
{%- set names = {"string": "str", "integer": "int", "boolean": "bool"} %}
{%- if names[spec.type] is defined %}{{- names[spec.type] }}
{%- elif spec.type == "array" %}{{- "list[" + kind(spec["items"]) + "]" }}
{%- elif spec.type == "object" %}{{- "dict" }}
{%- elif spec.type is iterable %}{{- "Union[" }}
{%- for one in spec.type %}{{- kind({"type": one}) + "," }}{%- endfor %}{{- "]" }}
{%- else %}{{- "Any" }}{%- endif %}{%- endmacro %}
{%- for tool in tools or [] %}{{- tool.function.name }}
{%- for name, spec in tool.function.parameters.properties.items() %}
{{- " " + name + ":" + kind(spec) }}{%- endfor %}
{{- tool | tojson }}{%- endfor %}
{%- for message in messages %}{{- message.content }}{%- endfor %}"""
"""As the template `tool_use` of Hermes 2 and 3 has it: `null` is a text, and so iterable."""


@pytest.mark.parametrize(
    ("schema", "shown"),
    [
        ({"type": ["string", "null"]}, "x:str"),
        ({"type": ["string", "integer", "null"]}, "x:Union[str,int,]"),
        ({"type": "array", "items": {"type": ["integer", "null"]}}, "x:list[int]"),
        ({"type": "null"}, "x:Union[]"),
        ({"type": "string", "enum": ["null"]}, "x:str"),
    ],
)
def test_a_type_that_may_be_null_is_shown_to_templates_without_one(
    tokenizer: Any, schema: dict[str, Any], shown: str
) -> None:
    tokenizer.chat_template = HERMES_3
    parameters = {"type": "object", "properties": {"x": schema}}
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    text = Tokenizer(tokenizer).render([{"role": "user", "content": "hi"}], [tool])
    assert f" {shown}" in text
    assert ("nullable" in text) == (schema.get("enum") is None)
    assert text.endswith("hi")


def test_a_template_that_knows_null_is_told_of_it(tokenizer: Any) -> None:
    tokenizer.chat_template = TOOLS_FIRST
    parameters = {"type": "object", "properties": {"x": {"type": ["string", "null"]}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    text = Tokenizer(tokenizer).render([{"role": "user", "content": "hi"}], [tool])
    assert '["string", "null"]' in text
