"""The forms in which models write calls of tools, beside what shows them in a rendered call."""

from __future__ import annotations

import re

from truthgpt_serve.server.text.tools.form import CALLED, KEY, VALUE, Form
from truthgpt_serve.server.text.tools.harmony import (
    CHANNEL,
    CONSTRAIN,
    END,
    FUNCTIONS,
    HARMONY,
    MESSAGE,
    START,
)
from truthgpt_serve.server.text.tools.tagged_forms import TAGGED

HERMES = Form("hermes", "<tool_call>", "</tool_call>")
_MISTRAL_NAMED = re.compile(
    r"\s*+(?P<name>[\w.-]++)(?:\[CALL_ID\]\w*+)?\s*+(?:\[ARGS\]\s*+)?(?=\{)"
)
"""Mistral's newer form: the name in front of the arguments."""
_MIROTHINKER_NAMED = re.compile(
    r"\s*+(?:<server_name>[^<>{]*+</server_name>\s*+)?"
    r"<tool_name>\s*+(?P<name>[\w.-]++)\s*+</tool_name>\s*+<arguments>\s*+(?=\{)"
)
"""The server, which no request has, and the name."""
_BAR = "\N{FULLWIDTH VERTICAL LINE}"
_DEEPSEEK = (f"<{_BAR}tool▁calls▁begin{_BAR}>", f"<{_BAR}tool▁calls▁end{_BAR}>")
_BEGIN, _SEPARATOR, _END = (
    f"<{_BAR}{name}{_BAR}>" for name in ("tool▁call▁begin", "tool▁sep", "tool▁call▁end")
)
_KIMI = ("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>")
_KIMI_INNER = ("<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>")
DEEPSEEK_V3 = Form(
    "deepseek_v3",
    *_DEEPSEEK,
    head=f"{_BEGIN}function{_SEPARATOR}{{name}}\n```json\n",
    tail=f"\n```{_END}",
    named=re.compile(
        rf"\s*+(?:{_BEGIN})?\s*+(?:\w*+{_SEPARATOR})?(?P<name>[\w.:-]++)"
        r"\s*+(?:```(?:json)?\s*+)?(?=\{)"
    ),
    inner=(_BEGIN, _SEPARATOR, _END),
    behind=_END,
    needs_tokens=True,
)
DEEPSEEK_V31 = Form(
    "deepseek_v31",
    *_DEEPSEEK,
    head=f"{_BEGIN}{{name}}{_SEPARATOR}",
    tail=_END,
    named=re.compile(rf"\s*+(?:{_BEGIN})?\s*+(?P<name>[\w.:-]++)\s*+{_SEPARATOR}\s*+(?=\{{)"),
    inner=(_BEGIN, _SEPARATOR, _END),
    behind=_END,
    needs_tokens=True,
)
FORMS = (
    (re.compile(r"<tool_call>\s*\{"), HERMES),
    *TAGGED,
    (
        re.compile(rf'"tool_call_id"\s*:\s*"\d+"\s*,\s*"tool_name"\s*:\s*"{CALLED}"'),
        Form(
            "cohere_command3",
            "<|START_ACTION|>",
            "<|END_ACTION|>",
            arguments="parameters",
            head='[\n    {"tool_call_id": "0", "tool_name": "{name}", "parameters": ',
            tail="}\n]",
            needs_tokens=True,
        ),
    ),
    (
        re.compile(rf"<\|tool_call>call:{CALLED}\{{"),
        Form(
            "gemma4",
            "<|tool_call>",
            "<tool_call|>",
            arguments="",
            head="call:{name}{",
            inner=('<|"|>',),
            needs_tokens=True,
            quote='<|"|>',
        ),
    ),
    (
        re.compile(rf"<start_function_call>call:{CALLED}\{{"),
        Form(
            "functiongemma",
            "<start_function_call>",
            "<end_function_call>",
            arguments="",
            head="call:{name}{",
            inner=("<escape>",),
            quote="<escape>",
        ),
    ),
    (
        re.compile(rf"<function_calls>\s*{CALLED}\("),
        Form(
            "olmo3",
            "<function_calls>",
            "</function_calls>",
            arguments="",
            head="\n{name}(",
            tail=")\n",
        ),
    ),
    (
        re.compile(rf"\[TOOL_CALLS\]\s*(?:\[|{CALLED})"),
        Form(
            "mistral",
            "[TOOL_CALLS]",
            is_bare=True,
            id_length=9,
            is_list=True,
            named=_MISTRAL_NAMED,
            inner=("[ARGS]", "[CALL_ID]"),
            needs_tokens=True,
        ),
    ),
    (re.compile(rf"{_SEPARATOR}{CALLED}\s*```"), DEEPSEEK_V3),
    (re.compile(rf"{_BEGIN}{CALLED}{_SEPARATOR}"), DEEPSEEK_V31),
    (
        re.compile(rf"<\|tool_call_begin\|>\s*functions\.{CALLED}:\d"),
        Form(
            "kimi_k2",
            *_KIMI,
            head="<|tool_call_begin|>functions.{name}:0<|tool_call_argument_begin|>",
            tail="<|tool_call_end|>",
            named=re.compile(
                r"\s*+(?:<\|tool_call_begin\|>)?\s*+"
                r"(?P<id>(?:functions\.)?(?P<name>[\w.-]++)(?::\d+)?)"
                r"\s*+<\|tool_call_argument_begin\|>\s*+(?=\{)"
            ),
            inner=_KIMI_INNER,
            behind=_KIMI_INNER[-1],
            needs_tokens=True,
        ),
    ),
    (
        re.compile(rf'<\|plugin\|>\s*\{{\s*"name"\s*:\s*"{CALLED}"'),
        Form(
            "internlm",
            "<|action_start|><|plugin|>",
            "<|action_end|>",
            arguments="parameters",
            inner=("<|action_start|>", "<|plugin|>"),
        ),
    ),
    (
        re.compile(rf'<longcat_tool_call>\s*\{{\s*"name"\s*:\s*"{CALLED}"'),
        Form("longcat", "<longcat_tool_call>", "</longcat_tool_call>"),
    ),
    (
        re.compile(r"<tool_calls>\s*\[\s*\{"),
        Form("tool_calls", "<tool_calls>", "</tool_calls>", is_list=True),
    ),
    (
        re.compile(r"<TOOLCALL>\s*\[\s*\{"),
        Form("nemotron_json", "<TOOLCALL>", "</TOOLCALL>", is_list=True),
    ),
    (
        re.compile(rf'<\|tools_prefix\|>\s*\[\s*\{{\s*"{CALLED}"\s*:'),
        Form(
            "apertus",
            "<|tools_prefix|>",
            "<|tools_suffix|>",
            head='[{"{name}": ',
            tail="}]",
            named=re.compile(r'\s*+\{\s*+"(?P<name>[\w.-]++)"\s*+:\s*+(?=\{)'),
            begun=re.compile(r'\{\s*+(?:"[\w.-]*+(?:"\s*+(?::\s*+)?)?)?\Z'),
        ),
    ),
    (
        re.compile(rf"<function={CALLED}>\s*\{{"),
        Form(
            "functionary",
            "<function=",
            head="{name}>",
            tail="</function>",
            named=re.compile(r"(?P<name>[\w.:-]++)>\s*+(?=\{)"),
            behind="</function>",
        ),
    ),
    (
        re.compile(rf"<tool_name>\s*{CALLED}\s*</tool_name>\s*<arguments>"),
        Form(
            "mirothinker",
            "<use_mcp_tool>",
            "</use_mcp_tool>",
            head="\n<server_name>tools</server_name>\n<tool_name>{name}</tool_name>\n<arguments>\n",
            tail="\n</arguments>\n",
            named=_MIROTHINKER_NAMED,
            behind="</arguments>",
        ),
    ),
    (
        re.compile(rf'function call<\|role_sep\|>\s*\{{\s*"name"\s*:\s*"{CALLED}"'),
        Form("gigachat3", "function call<|role_sep|>\n", inner=("<|role_sep|>",)),
    ),
    (
        re.compile(rf'<\|function_call\|>\s*\{{\s*"name"\s*:\s*"{CALLED}"'),
        Form("gigachat3", "<|function_call|>"),
    ),
    (
        re.compile(rf'Action:\s*```json\s*\[\s*\{{\s*"tool_name"\s*:\s*"{CALLED}"'),
        Form(
            "command_r",
            "Action:\n```json",
            "```",
            arguments="parameters",
            head='\n[\n    {"tool_name": "{name}", "parameters": ',
            tail="}\n]\n",
        ),
    ),
    (
        re.compile(rf"to={FUNCTIONS}{CALLED}<\|channel\|>"),
        Form(
            HARMONY,
            f" to={FUNCTIONS}",
            head=f"{{name}}{CHANNEL}commentary {CONSTRAIN}json{MESSAGE}",
            tail="",
            inner=(START, CHANNEL, MESSAGE, END, CONSTRAIN),
        ),
    ),
    (
        re.compile(r"<\|tool_call\|>\s*\[\s*\{"),
        Form("granite", "<|tool_call|>", is_bare=True, is_list=True),
    ),
    (
        re.compile(rf'\{{\s*"name"\s*:\s*"{CALLED}"\s*,\s*"parameters"'),
        Form(
            "llama3_json",
            "<|python_tag|>",
            is_bare=True,
            arguments="parameters",
            needs_tokens=True,
        ),
    ),
    (
        re.compile(rf"<\|tool_call_start\|>\s*\[\s*{CALLED}\("),
        Form(
            "lfm2",
            "<|tool_call_start|>",
            "<|tool_call_end|>",
            is_bare=True,
            arguments="",
            head="[{name}(",
            tail=")]",
            needs_tokens=True,
        ),
    ),
    (
        re.compile(rf"\[\s*{CALLED}\(\s*{KEY}\s*=\s*[\"']{VALUE}"),
        Form("pythonic", is_bare=True, arguments="", head="[{name}(", tail=")]"),
    ),
)
SHOWN_BY_WORDS = (
    ("<|tool_list_start|>", "lfm2"),
    ("List of tools: [", "lfm2"),
    ("respond with <|tool_call|> followed by a JSON list", "granite"),
    ("respond only with <|tool_call|> followed by a JSON list", "granite"),
)
"""What a template says of tools that shows no call, and the form of its model's."""
PYTHONIC = frozenset(("pythonic", "lfm2", "olmo3"))
"""Forms whose calls are as Python writes them."""
ANY = Form("json", "<tool_call>", "</tool_call>", is_bare=True, behind="<|/tool_call|>")
"""For templates with tools whose form is none of these."""
