"""The forms in which models write calls of tools, beside what shows them in a rendered call."""

from __future__ import annotations

import re

from truthgpt_serve.server.text.tools.form import Form
from truthgpt_serve.server.text.tools.tagged_call import DSML

CALLED, KEY, VALUE = "QxCalledZ", "qxkey", "QxValueZ"
"""A function that is called in a rendered conversation, a parameter's name and its value."""
HERMES = Form("hermes", "<tool_call>", "</tool_call>")
_MISTRAL_NAMED = re.compile(
    r"\s*+(?P<name>[\w.-]++)(?:\[CALL_ID\]\w*+)?\s*+(?:\[ARGS\]\s*+)?(?=\{)"
)
"""Mistral's newer form: the name in front of the arguments."""
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
    (
        re.compile(r"<tool_call>\s*<function="),
        Form(
            "qwen3_coder",
            "<tool_call>",
            "</tool_call>",
            arguments="",
            head="\n<function={name}>\n",
            tail="\n</function>\n",
            style="qwen_xml",
        ),
    ),
    (
        re.compile(rf"<tool_call>\s*{CALLED}\s*<arg_key>"),
        Form(
            "glm45",
            "<tool_call>",
            "</tool_call>",
            arguments="",
            head="{name}\n",
            tail="\n",
            style="glm_xml",
        ),
    ),
    (
        re.compile(r"<seed:tool_call>\s*<function="),
        Form(
            "seed_oss",
            "<seed:tool_call>",
            "</seed:tool_call>",
            arguments="",
            head="\n<function={name}>\n",
            tail="\n</function>\n",
            needs_tokens=True,
            style="qwen_xml",
        ),
    ),
    (
        re.compile(r"<minimax:tool_call>\s*<invoke name="),
        Form(
            "minimax_m2",
            "<minimax:tool_call>",
            "</minimax:tool_call>",
            arguments="",
            head='\n<invoke name="{name}">\n',
            tail="\n</invoke>\n",
            needs_tokens=True,
            style="minimax_xml",
        ),
    ),
    (
        re.compile(rf'<{DSML}invoke name="{CALLED}">'),
        Form(
            "deepseek_v32",
            f"<{DSML}function_calls>",
            f"</{DSML}function_calls>",
            arguments="",
            head=f'\n<{DSML}invoke name="{{name}}">\n',
            tail=f"\n</{DSML}invoke>\n",
            needs_tokens=True,
            style="deepseek_xml",
        ),
    ),
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
PYTHONIC = frozenset(("pythonic", "lfm2", "olmo3"))
"""Forms whose calls are as Python writes them."""
ANY = Form("json", "<tool_call>", "</tool_call>", is_bare=True, behind="<|/tool_call|>")
"""For templates with tools whose form is none of these."""
