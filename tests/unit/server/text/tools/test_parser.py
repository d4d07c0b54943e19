"""Answers of models with tools, in the forms of their templates and in pieces of every size."""

from __future__ import annotations

import json
import random
import time
from typing import Any

import pytest

from tests.support.tool_answers import read_answer, read_pieces
from truthgpt_serve.server.text.tools.codec import make_parser
from truthgpt_serve.server.text.tools.form import Form
from truthgpt_serve.server.text.tools.forms import ANY, FORMS, HERMES
from truthgpt_serve.server.text.tools.harmony import HARMONY
from truthgpt_serve.server.text.tools.json_call import MAX_HELD_CALL
from truthgpt_serve.server.text.tools.parser import MAX_CALLS, MAX_HELD, CallParser
from truthgpt_serve.server.text.tools.request import ToolUse
from truthgpt_serve.server.text.tools.tagged_call import DSML

BY_NAME = {form.name: form for _, form in FORMS}
READ = [form for form in BY_NAME.values() if form.name != HARMONY]
SCHEMAS: dict[str, Any] = {
    "add": {"properties": {"a": {"type": "integer"}, "s": {"type": "string"}}},
    "sub": {},
}


def read(form: Form, text: str, size: int, *, single: bool = False) -> tuple[str, list[list[str]]]:
    """Returns the text of an answer, and name and arguments of each call."""
    return read_answer(CallParser(form, SCHEMAS, single=single), text, size)


ADD = '{"name": "add", "arguments": {"a": 1}}'
CASES: dict[str, tuple[Form, str, str, list[list[str]]]] = {
    "hermes": (
        HERMES,
        f"I add.\n<tool_call>\n{ADD}\n</tool_call>",
        "I add.",
        [["add", '{"a": 1}']],
    ),
    "hermes, two": (
        HERMES,
        f"<tool_call>\n{ADD}\n</tool_call>\n"
        '<tool_call>{"name": "sub", "arguments": {}}</tool_call>\n',
        "",
        [["add", '{"a": 1}'], ["sub", "{}"]],
    ),
    "hermes, another order": (
        HERMES,
        '<tool_call>{"arguments": {"s": "}\\"{"}, "name": "add"}</tool_call>',
        "",
        [["add", '{"s":"}\\"{"}']],
    ),
    "hermes, brackets in texts": (
        HERMES,
        '<tool_call>{"name": "add", "arguments": {"s": "}]\\"{<tool_call>"}}</tool_call> Done.',
        " Done.",
        [["add", '{"s": "}]\\"{<tool_call>"}']],
    ),
    "hermes, arguments as a text": (
        HERMES,
        '<tool_call>{"name": "add", "arguments": "{\\"a\\": 1}"}</tool_call>',
        "",
        [["add", '{"a": 1}']],
    ),
    "hermes, no arguments": (HERMES, '<tool_call>{"name": "sub"}</tool_call>', "", [["sub", "{}"]]),
    "hermes, cut off": (
        HERMES,
        '<tool_call>\n{"name": "add", "arguments": {"a"',
        '<tool_call>\n{"name": "add", "arguments": {"a"',
        [],
    ),
    "hermes, no call": (
        HERMES,
        'a <tool_call>{"x": 1}</tool_call>',
        'a <tool_call>{"x": 1}</tool_call>',
        [],
    ),
    "no call": (HERMES, "  a < b <tool and\n more \n", "  a < b <tool and\n more \n", []),
    "qwen3_coder": (
        BY_NAME["qwen3_coder"],
        "Well.\n\n<tool_call>\n<function=add>\n<parameter=a>\n1\n</parameter>\n<parameter=s>\n2\n"
        "</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=sub>\n</function>\n"
        "</tool_call>",
        "Well.",
        [["add", '{"a": 1, "s": "2"}'], ["sub", "{}"]],
    ),
    "glm45": (
        BY_NAME["glm45"],
        "<tool_call>add\n<arg_key>a</arg_key>\n<arg_value>[1]</arg_value>\n</tool_call>",
        "",
        [["add", '{"a": [1]}']],
    ),
    "mistral": (
        BY_NAME["mistral"],
        f'Ok.[TOOL_CALLS] [{ADD}, {{"name": "sub", "arguments": {{}}}}]',
        "Ok.",
        [["add", '{"a": 1}'], ["sub", "{}"]],
    ),
    "mistral without its special token": (
        BY_NAME["mistral"],
        f"[{ADD}]",
        "",
        [["add", '{"a": 1}']],
    ),
    "mistral's newer form": (
        BY_NAME["mistral"],
        '[TOOL_CALLS]add[CALL_ID]abcdefghi[ARGS]{"a": 1}[TOOL_CALLS]sub[ARGS]{}',
        "",
        [["add", '{"a": 1}'], ["sub", "{}"]],
    ),
    "mistral's newer form without special tokens": (
        BY_NAME["mistral"],
        'add{"a": 1}',
        "",
        [["add", '{"a": 1}']],
    ),
    "apertus": (
        BY_NAME["apertus"],
        'Ok.<|tools_prefix|>[{"add": {"a": 1, "s": "}]"}}, {"sub": {}}]<|tools_suffix|>',
        "Ok.",
        [["add", '{"a": 1, "s": "}]"}'], ["sub", "{}"]],
    ),
    "apertus, in the usual form": (
        BY_NAME["apertus"],
        f"<|tools_prefix|>[{ADD}]<|tools_suffix|>",
        "",
        [["add", '{"a": 1}']],
    ),
    "apertus, no call": (
        BY_NAME["apertus"],
        '<|tools_prefix|>[{"a b": {}}]<|tools_suffix|>',
        '<|tools_prefix|>[{"a b": {}}]<|tools_suffix|>',
        [],
    ),
    "functionary": (
        BY_NAME["functionary"],
        'Ok. <function=add>{"a": 1, "s": "</function>"}</function><function=sub>{}</function>',
        "Ok.",
        [["add", '{"a": 1, "s": "</function>"}'], ["sub", "{}"]],
    ),
    "functionary, no call": (
        BY_NAME["functionary"],
        "a <function=add> b {",
        "a <function=add> b {",
        [],
    ),
    "mirothinker": (
        BY_NAME["mirothinker"],
        "I add.\n\n<use_mcp_tool>\n<server_name>maths</server_name>\n<tool_name>add</tool_name>\n"
        '<arguments>\n{\n"s": "</arguments>"\n}\n</arguments>\n</use_mcp_tool>',
        "I add.",
        [["add", '{\n"s": "</arguments>"\n}']],
    ),
    "mirothinker, two": (
        BY_NAME["mirothinker"],
        "<use_mcp_tool>\n<server_name>a</server_name>\n<tool_name>add</tool_name>\n<arguments>\n"
        '{"a": 1}\n</arguments>\n<server_name>b</server_name>\n<tool_name>sub</tool_name>\n'
        "<arguments>\n{}\n</arguments>\n</use_mcp_tool>\n<use_mcp_tool>\n<tool_name>sub</tool_name>\n"
        "<arguments>{}</arguments>\n</use_mcp_tool> Done.",
        " Done.",
        [["add", '{"a": 1}'], ["sub", "{}"], ["sub", "{}"]],
    ),
    "mirothinker, no call": (
        BY_NAME["mirothinker"],
        "<use_mcp_tool>\n<server_name>a</server_name>\n<tool_name>a b</tool_name>{}</use_mcp_tool>",
        "<use_mcp_tool>\n<server_name>a</server_name>\n<tool_name>a b</tool_name>{}</use_mcp_tool>",
        [],
    ),
    "command_r": (
        BY_NAME["command_r"],
        'Plan: I add.\nAction:\n```json\n[\n    {\n        "tool_name": "add",\n'
        '        "parameters": {\n            "a": 1\n        }\n    },\n    {\n'
        '        "tool_name": "sub",\n        "parameters": {}\n    }\n]```',
        "Plan: I add.",
        [["add", '{\n            "a": 1\n        }'], ["sub", "{}"]],
    ),
    "gigachat3": (
        BY_NAME["gigachat3"],
        f"Ok.<|function_call|>{ADD}",
        "Ok.",
        [["add", '{"a": 1}']],
    ),
    "nemotron_json": (
        BY_NAME["nemotron_json"],
        f'Ok.\n<TOOLCALL>[{ADD}, {{"name": "sub", "arguments": {{}}}}]</TOOLCALL>',
        "Ok.",
        [["add", '{"a": 1}'], ["sub", "{}"]],
    ),
    "deepseek_v4": (
        BY_NAME["deepseek_v4"],
        f'Ok.\n\n<{DSML}tool_calls>\n<{DSML}invoke name="add">\n'
        f'<{DSML}parameter name="a" string="false">1</{DSML}parameter>\n</{DSML}invoke>\n'
        f'<{DSML}invoke name="sub">\n</{DSML}invoke>\n</{DSML}tool_calls>',
        "Ok.",
        [["add", '{"a": 1}'], ["sub", "{}"]],
    ),
    "llama3_json": (
        BY_NAME["llama3_json"],
        '{"name": "add", "parameters": {"a": 1}}; {"name": "sub", "parameters": {}}',
        "",
        [["add", '{"a": 1}'], ["sub", "{}"]],
    ),
    "llama3_json with its token": (
        BY_NAME["llama3_json"],
        '<|python_tag|>{"type": "function", "name": "add", "parameters": {"a": 1}}',
        "",
        [["add", '{"a": 1}']],
    ),
    "JSON that is no call": (
        BY_NAME["llama3_json"],
        '{"name": "Ann", "parameters": {"age": 5}}',
        '{"name": "Ann", "parameters": {"age": 5}}',
        [],
    ),
    "JSON of another kind": (BY_NAME["llama3_json"], '{"a": [1, 2]} so.', '{"a": [1, 2]} so.', []),
    "a list": (BY_NAME["mistral"], "[1, 2]", "[1, 2]", []),
    "a name": (BY_NAME["mistral"], "add one", "add one", []),
    "an unknown form": (ANY, ADD, "", [["add", '{"a": 1}']]),
}


BAR = "\N{FULLWIDTH VERTICAL LINE}"
V3_CALL = "<|tool▁call▁begin|>function<|tool▁sep|>{}\n```json\n{}\n```<|tool▁call▁end|>".replace(
    "|", BAR
)
V31_CALL = "<|tool▁call▁begin|>{}<|tool▁sep|>{}<|tool▁call▁end|>".replace("|", BAR)
DEEPSEEK = "<|tool▁calls▁begin|>{}<|tool▁calls▁end|>".replace("|", BAR)
KIMI_CALL = "<|tool_call_begin|>{}<|tool_call_argument_begin|>{}<|tool_call_end|>"
KIMI = "<|tool_calls_section_begin|>{}<|tool_calls_section_end|>"
BOTH = [["add", '{"a": 1}'], ["sub", "{}"]]
DSML = "\N{FULLWIDTH VERTICAL LINE}DSML\N{FULLWIDTH VERTICAL LINE}"
CASES |= {
    "deepseek_v32": (
        BY_NAME["deepseek_v32"],
        f'So.\n\n<{DSML}function_calls>\n<{DSML}invoke name="add">\n<{DSML}parameter name="a" '
        f'string="false">1</{DSML}parameter>\n<{DSML}parameter name="x" string="true">2</{DSML}'
        f"parameter>\n</{DSML}invoke>\n</{DSML}function_calls>",
        "So.",
        [["add", '{"a": 1, "x": "2"}']],
    ),
    "cohere_command3": (
        BY_NAME["cohere_command3"],
        '<|START_ACTION|>[\n    {"tool_call_id": "0", "tool_name": "add", "parameters": {"a": 1}},'
        '\n    {"tool_call_id": "1", "tool_name": "sub", "parameters": {}}\n]<|END_ACTION|>',
        "",
        BOTH,
    ),
    "gemma4": (
        BY_NAME["gemma4"],
        'So.<|tool_call>call:add{a:1,s:<|"|>}, "b":{<|"|>,o:{l:[true, x y,<|"|>\n<|"|>]}}'
        "<tool_call|><|tool_call>call:sub{}<tool_call|> Done.",
        "So. Done.",
        [["add", '{"a":1,"s":"}, \\"b\\":{","o":{"l":[true,"x y","\\n"]}}'], ["sub", "{}"]],
    ),
    "gemma4, no arguments": (
        BY_NAME["gemma4"],
        "<|tool_call>call:add{a:{}<tool_call|>",
        "<|tool_call>call:add{a:{}<tool_call|>",
        [],
    ),
    "gemma4, broken": (
        BY_NAME["gemma4"],
        "<|tool_call>call:add{a}<tool_call|>",
        "<|tool_call>call:add{a}<tool_call|>",
        [],
    ),
    "functiongemma": (
        BY_NAME["functiongemma"],
        "<start_function_call>call:add{s:<escape>5<escape>}<end_function_call>",
        "",
        [["add", '{"s":"5"}']],
    ),
    "olmo3": (
        BY_NAME["olmo3"],
        'So. <function_calls>add(a=1, s="(x]\\n")\nsub()</function_calls>',
        "So.",
        [["add", '{"a":1,"s":"(x]\\n"}'], ["sub", "{}"]],
    ),
    "lfm2": (
        BY_NAME["lfm2"],
        "So.<|tool_call_start|>[add(a=1), sub()]<|tool_call_end|> More.",
        "So. More.",
        [["add", '{"a":1}'], ["sub", "{}"]],
    ),
    "mistral, text behind": (
        BY_NAME["mistral"],
        '[TOOL_CALLS]add[ARGS]{"a": 1} ok',
        " ok",
        [["add", '{"a": 1}']],
    ),
    "mistral's newer form without its first mark": (
        BY_NAME["mistral"],
        'add[CALL_ID]abcdefghi[ARGS]{"a": 1}',
        "",
        [["add", '{"a": 1}']],
    ),
    "hermes, arguments that are no JSON": (
        HERMES,
        '<tool_call>{"name": "add", "arguments": {"a": one}}</tool_call>',
        '<tool_call>{"name": "add", "arguments": {"a": one}}</tool_call>',
        [],
    ),
    "qwen3_coder, broken": (
        BY_NAME["qwen3_coder"],
        "<tool_call>\n<function=add>\n<parameter a>1</parameter>\n</function>\n</tool_call>",
        "<tool_call>\n<function=add>\n<parameter a>1</parameter>\n</function>\n</tool_call>",
        [],
    ),
    "qwen3_coder, cut off": (
        BY_NAME["qwen3_coder"],
        "<tool_call>\n<function=add>\n<parameter=a>\n1\n</parameter>\n<param",
        "<tool_call>\n<function=add>\n<parameter=a>\n1\n</parameter>\n<param",
        [],
    ),
    "qwen3_coder, one broken and one whole": (
        BY_NAME["qwen3_coder"],
        "<tool_call><function=add>1</function></tool_call>"
        "<tool_call><function=sub></function></tool_call>",
        "<tool_call><function=add>1</function></tool_call>",
        [["sub", "{}"]],
    ),
    "glm45, a word": (
        BY_NAME["glm45"],
        "<tool_call>hello</tool_call>",
        "<tool_call>hello</tool_call>",
        [],
    ),
    "glm45, no parameters": (BY_NAME["glm45"], "<tool_call>sub\n</tool_call>", "", [["sub", "{}"]]),
    "deepseek_v3": (
        BY_NAME["deepseek_v3"],
        "I add." + DEEPSEEK.format(V3_CALL.format("add", '{"a": 1}')),
        "I add.",
        [["add", '{"a": 1}']],
    ),
    "deepseek_v3, two": (
        BY_NAME["deepseek_v3"],
        DEEPSEEK.format(V3_CALL.format("add", '{"a": 1}') + "\n" + V3_CALL.format("sub", "{}")),
        "",
        BOTH,
    ),
    "deepseek_v3, backticks in texts": (
        BY_NAME["deepseek_v3"],
        DEEPSEEK.format(V3_CALL.format("add", '{"s": "```json\\n{"}')),
        "",
        [["add", '{"s": "```json\\n{"}']],
    ),
    "deepseek_v31, two": (
        BY_NAME["deepseek_v31"],
        DEEPSEEK.format(V31_CALL.format("add", '{"a": 1}') + V31_CALL.format("sub", "{}")),
        "",
        BOTH,
    ),
    "deepseek_v31, cut off": (
        BY_NAME["deepseek_v31"],
        "So." + (DEEPSEEK.partition("{}")[0] + V31_CALL).format("add", '{"a": 1')[:-17],
        "So." + (DEEPSEEK.partition("{}")[0] + V31_CALL).format("add", '{"a": 1')[:-17],
        [],
    ),
    "deepseek_v31, no call": (
        BY_NAME["deepseek_v31"],
        DEEPSEEK.format("x"),
        DEEPSEEK.format("x"),
        [],
    ),
    "kimi_k2": (
        BY_NAME["kimi_k2"],
        "Ok. "
        + KIMI.format(
            KIMI_CALL.format("functions.add:0", '{"a": 1}') + KIMI_CALL.format("sub:1", "{}")
        ),
        "Ok.",
        BOTH,
    ),
    "minimax_m2": (
        BY_NAME["minimax_m2"],
        '<minimax:tool_call>\n<invoke name="add">\n<parameter name="a">1</parameter>\n'
        '<parameter name="s">2</parameter>\n</invoke>\n<invoke name="sub">\n</invoke>\n'
        "</minimax:tool_call>",
        "",
        [["add", '{"a": 1, "s": "2"}'], ["sub", "{}"]],
    ),
    "seed_oss": (
        BY_NAME["seed_oss"],
        "<seed:tool_call>\n<function=add>\n<parameter=s>a\nb</parameter>\n</function>\n"
        "</seed:tool_call>",
        "",
        [["add", '{"s": "a\\nb"}']],
    ),
    "internlm": (
        BY_NAME["internlm"],
        f"I add.<|action_start|><|plugin|>\n{ADD}<|action_end|>",
        "I add.",
        [["add", '{"a": 1}']],
    ),
    "longcat": (
        BY_NAME["longcat"],
        f"<longcat_tool_call>\n{ADD}\n</longcat_tool_call>",
        "",
        [["add", '{"a": 1}']],
    ),
    "tool_calls": (
        BY_NAME["tool_calls"],
        f'<tool_calls>[{ADD}, {{"name": "sub", "arguments": {{}}}}]</tool_calls>',
        "",
        BOTH,
    ),
    "granite": (BY_NAME["granite"], f"<|tool_call|>[{ADD}]", "", [["add", '{"a": 1}']]),
    "granite 3.1": (BY_NAME["granite"], f" <tool_call> [{ADD}]", "", [["add", '{"a": 1}']]),
    "granite and another tag": (BY_NAME["granite"], "<tool_call>x", "<tool_call>x", []),
    "granite without its special token": (
        BY_NAME["granite"],
        f"[{ADD}]",
        "",
        [["add", '{"a": 1}']],
    ),
    "phi4_mini_json": (ANY, f"functools[{ADD}]", "", [["add", '{"a": 1}']]),
    "phi4_mini_json with its tokens": (
        ANY,
        f"<|tool_call|>[{ADD}]<|/tool_call|>",
        "",
        [["add", '{"a": 1}']],
    ),
    "a word that a list may begin with": (
        ANY,
        "functools is a module",
        "functools is a module",
        [],
    ),
    "xlam": (ANY, f"[{ADD}]", "", [["add", '{"a": 1}']]),
}


@pytest.mark.parametrize("case", CASES)
def test_every_form_in_pieces_of_every_size(case: str) -> None:
    form, text, said, calls = CASES[case]
    for size in (1, 2, 3, 5, 7, 11, 1000):
        assert read(form, text, size) == (said, calls), f"in pieces of {size}"


ALPHABET = [
    *("<tool_call>", "</tool_call>", "<function=add>", "</function>", "<parameter=a>"),
    *("</parameter>", "add", "sub", "{", "}", "[", "]", '"', "```", ",", ":", "\n", " ", "a", "1"),
    *('{"name": "add", "arguments": {', "functions.add:0", "<arg_key>", "</arg_value>", "\\"),
]


@pytest.mark.parametrize("form", [*BY_NAME.values(), ANY], ids=lambda form: form.name)
def test_any_answer_is_read_the_same_in_any_pieces(form: Form) -> None:
    marks = sorted({*form.marks, form.opening("add"), form.opening(), form.closing} - {""})
    for seed in range(200):
        chance = random.Random(seed)
        text = "".join(chance.choices([*ALPHABET, *3 * marks], k=chance.randint(1, 30)))
        use = ToolUse([], SCHEMAS)
        whole = read_answer(make_parser(form, use), text, len(text))
        pieces, at = [], 0
        while at < len(text):
            size = chance.choice((1, 1, 2, 3, 8, 40))
            pieces.append(text[at : at + size])
            at += size
        assert read_pieces(make_parser(form, use), pieces) == whole, text


def test_text_is_given_as_soon_as_it_is_certain() -> None:
    parser = CallParser(HERMES, SCHEMAS)
    assert [delta.text for delta in parser.feed("Hello you")] == ["Hello you"]
    assert parser.feed("\n<tool") == []
    assert [delta.text for delta in parser.feed("box")] == ["\n<toolbox"]


def test_arguments_of_a_long_call_are_given_as_they_come() -> None:
    parser, long = CallParser(HERMES, SCHEMAS), "x" * MAX_HELD_CALL
    assert parser.feed('<tool_call>{"name": "add", "arguments": {"s": "') == []
    deltas = parser.feed(long)
    assert [tuple(delta)[:3] for delta in deltas] == [("", "add", ""), ("", "", f'{{"s": "{long}')]
    assert [delta.arguments for delta in parser.feed('ce"\n')] == ['ce"\n']


def test_arguments_that_a_grammar_binds_are_given_as_they_come() -> None:
    parser = CallParser(HERMES, SCHEMAS, is_bound=True)
    assert parser.expect("add") == []
    assert [tuple(delta)[1:3] for delta in parser.feed('{"s": "on')] == [
        ("add", ""),
        ("", '{"s": "on'),
    ]
    assert (parser.finish(), parser.num_calls) == ([], 1)


@pytest.mark.parametrize("size", [1, 7, 5000])
@pytest.mark.parametrize("length", [10, MAX_HELD_CALL])
def test_line_breaks_in_texts_are_mended(size: int, length: int) -> None:
    written = "a\n\tb" * length
    text = f'<tool_call>{{"name": "add",\n"arguments": {{"s":\n"{written}\\n"}}}}</tool_call>'
    said, [[_, arguments]] = read(HERMES, text, size)
    assert (said, json.loads(arguments)) == ("", {"s": written + "\n"})


def test_an_id_of_the_models_own() -> None:
    parser = CallParser(BY_NAME["kimi_k2"], SCHEMAS)
    deltas = parser.feed(KIMI.format(KIMI_CALL.format("functions.add:3", "{}")))
    assert [delta.call_id for delta in deltas if delta.name] == ["functions.add:3"]


def test_one_call_only() -> None:
    text = f"<tool_call>{ADD}</tool_call><tool_call>{ADD}</tool_call> more"
    assert read(HERMES, text, 1000, single=True) == ("", [["add", '{"a": 1}']])
    assert (
        len(read(HERMES, f"<tool_call>{ADD}</tool_call>" * (MAX_CALLS + 5), 1000)[1]) == MAX_CALLS
    )


@pytest.mark.parametrize("form", [form for form in READ if form.arguments])
def test_an_answer_that_the_prompt_begins(form: Form) -> None:
    for rest in ("", "}", "}]", f"}}\n{form.end}\n"):
        parser = CallParser(form, SCHEMAS)
        deltas = [*parser.expect("add"), *parser.feed('{"a"'), *parser.feed(f": 1}}{rest}")]
        deltas += parser.finish()
        assert [delta.name for delta in deltas if delta.name] == ["add"]
        assert "".join(delta.arguments for delta in deltas) == '{"a": 1}'
        assert not any(delta.text for delta in deltas)
    parser = CallParser(form, SCHEMAS)
    whole = form.opening("add") + '{"a": 1}' + form.closing
    assert read_answer(CallParser(form, SCHEMAS), whole, 3) == ("", [["add", '{"a": 1}']])
    deltas = [*parser.feed(form.opening("add")), *parser.feed('{"a": 1}'), *parser.finish()]
    assert [delta.name for delta in deltas if delta.name] == ["add"]
    assert "".join(delta.arguments for delta in deltas) == '{"a": 1}'
    assert not any(delta.text for delta in deltas)


GLM = BY_NAME["glm45"]
MISTRAL = BY_NAME["mistral"]


@pytest.mark.parametrize(
    ("form", "begin", "repeated", "size"),
    [
        (ANY, "", " ", 1),
        (ANY, "add", " ", 1),
        (HERMES, "", "\n", 1),
        (HERMES, "<tool_call>", " ", 1),
        (HERMES, "<tool_call>", "a", 1),
        (HERMES, "<tool_call>", "]", 10**6),
        (HERMES, "<tool_call>", "] ", 10**6),
        (MISTRAL, "[TOOL_CALLS]", "`}", 10**6),
        (MISTRAL, "[TOOL_CALLS]", " ", 1),
        (MISTRAL, "[TOOL_CALLS]add", " ", 1),
        (MISTRAL, "[TOOL_CALLS]", "a", 1),
        (BY_NAME["deepseek_v3"], DEEPSEEK[:21], "a", 1),
        (BY_NAME["deepseek_v3"], DEEPSEEK[:21], "`", 1),
        (BY_NAME["deepseek_v31"], DEEPSEEK[:21], V31_CALL[:20], 4),
        (BY_NAME["kimi_k2"], KIMI[:30], "<|tool_call_begin|>a:0", 4),
        (BY_NAME["minimax_m2"], '<minimax:tool_call><invoke name="add">', "<parameter name=", 4),
        (ANY, "", "functools[", 4),
        (GLM, "<tool_call>add\n<arg_key>", " ", 4),
        (GLM, "<tool_call>add\n<arg_key>a</arg_value>", "<arg_key>a</arg_key>", 4),
        (GLM, "<tool_call>add\n<arg_key>a</arg_key>", " </arg_value>", 4),
        (GLM, "<tool_call>add\n", "<arg_key>a</arg_key><arg_value>1</arg_value>", 4),
    ],
)
def test_reading_takes_time_in_proportion(form: Form, begin: str, repeated: str, size: int) -> None:
    def seconds(length: int) -> float:
        text = begin + repeated * (length // len(repeated))
        best = float("inf")
        for _ in range(3):
            started = time.process_time()
            read(form, text, size)
            best = min(best, time.process_time() - started)
        return best

    # In one piece it takes so little that only a long text shows how it grows.
    length = 50_000 if size > 50_000 else 2000
    assert seconds(8 * length) < 24 * seconds(length)


@pytest.mark.parametrize("begin", ["", "add"])
def test_white_space_is_given_when_it_is_too_long_to_hold(begin: str) -> None:
    text = begin + " " * (3 * MAX_HELD)
    for size in (1, 7, len(text)):
        assert read(ANY, text, size) == (text, [])


QWEN = BY_NAME["qwen3_coder"]
CUT: dict[str, tuple[Form, str, str, list[list[str]]]] = {
    "hermes": (
        HERMES,
        f'Ok. <tool_call>{ADD}</tool_call><tool_call>{{"name": "sub", "arguments": {{"s": "x',
        "Ok.",
        [["add", '{"a": 1}'], ["sub", '{"s": "x']],
    ),
    "hermes, before the arguments": (
        HERMES,
        '<tool_call>{"name": "sub", "argu',
        '<tool_call>{"name": "sub", "argu',
        [],
    ),
    "qwen3_coder": (
        QWEN,
        "<tool_call>\n<function=add>\n<parameter=a>\n1\n</parameter>\n<parameter=s>\nx\ny</para",
        "",
        [["add", '{"a": 1, "s": "x\\ny']],
    ),
    "qwen3_coder, before the arguments": (
        QWEN,
        "<tool_call>\n<function=add>\n<par",
        "",
        [["add", "{"]],
    ),
    "glm45": (
        GLM,
        "<tool_call>add\n<arg_key>a</arg_key>\n<arg_value>[1",
        "",
        [["add", '{"a": "[1']],
    ),
    "gemma4": (
        BY_NAME["gemma4"],
        '<|tool_call>call:add{a:1,s:<|"|>x {y<|"',
        "",
        [["add", '{"a":1,"s":"x {y']],
    ),
    "pythonic": (
        BY_NAME["pythonic"],
        '[add(a=1, s="x, (y"), sub(), add(a=[1, 2], s="x',
        "",
        [["add", '{"a":1,"s":"x, (y"}'], ["sub", "{}"], ["add", '{"a":[1,2]']],
    ),
    "apertus": (
        BY_NAME["apertus"],
        '<|tools_prefix|>[{"add": {"s": "x',
        "",
        [["add", '{"s": "x']],
    ),
}


@pytest.mark.parametrize("case", CUT)
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_an_answer_that_its_limit_cut(case: str, size: int) -> None:
    form, text, said, calls = CUT[case]
    parser = CallParser(form, SCHEMAS)
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    deltas = [delta for group in map(parser.feed, pieces) for delta in group]
    deltas += parser.finish(cut=True)
    assert "".join(delta.text for delta in deltas) == said
    found: list[list[str]] = []
    for delta in deltas:
        if delta.name:
            found.append([delta.name, ""])
        if delta.arguments:
            found[-1][1] += delta.arguments
    assert found == calls
    assert parser.num_calls == len(calls)
