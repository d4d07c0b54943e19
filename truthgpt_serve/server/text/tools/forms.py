"""The forms in which models write calls of tools, and which of them a chat template shows.

A template is asked by rendering a conversation with a call in it: what stands around the call is
what the model was trained to write.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Apply = Callable[..., Any]
"""A tokenizer's `apply_chat_template`."""

CALLED, TOLD, KEY, VALUE = "QxCalledZ", "QxToldZ", "qxkey", "QxValueZ"
"""Marks in the rendered conversation: a function that is called, one that is told of, and so on."""


@dataclass(frozen=True, slots=True)
class Form:
    """How a model writes calls.

    Attributes:
        name: In vLLM's words, where it has a parser for it.
        begin: What stands before a call, or before all of them.
        end: What stands behind it or them, or nothing.
        is_bare: Whether an answer may be a call without anything before it.
        arguments: The key of the arguments in JSON; empty where those are no JSON.
        id_length: The length of ids that the template asks for; 0 for any.
        head: What stands between `begin` and the arguments, with `{name}`; where it is empty,
            a call is a JSON object with its name and its arguments.
        tail: What stands between the arguments and `end`.
        is_list: Whether those objects stand in a list.
        named: Finds the name before the arguments: `name`, and `id` where the model writes one.
        inner: Other marks of calls, which may be special tokens.
        behind: The mark behind each call, where `end` is that behind all of them.
        needs_tokens: Whether vLLM's parser wants `begin` and `end` to be one token each.
    """

    name: str
    begin: str = ""
    end: str = ""
    is_bare: bool = False
    arguments: str = "arguments"
    id_length: int = 0
    head: str = ""
    tail: str = "}"
    is_list: bool = False
    named: re.Pattern[str] | None = None
    inner: tuple[str, ...] = ()
    behind: str = ""
    needs_tokens: bool = False

    def opening(self, name: str = "", *, is_bound: bool = False) -> str:
        """Returns how an answer begins that calls a function, up to its arguments.

        Args:
            name: The function; empty leaves it open.
            is_bound: Whether a grammar binds the rest, which is then all of the JSON.
        """
        if self.head:
            before, _, behind = self.head.partition("{name}")
            if name:
                return f"{self.begin}{before}{name}{behind}"
            return self.begin + (before if self.arguments else before.partition("<")[0])
        array = "[" if self.is_list else ""
        break_ = "\n" if self.end and not array else ""
        if is_bound and not name:
            return f"{self.begin}{break_}{array}"
        head = f'{self.begin}{break_}{array}{{"name": "'
        return f'{head}{name}", "{self.arguments}": ' if name else head

    @property
    def closing(self) -> str:
        """What stands behind the arguments of a last call."""
        tail = self.tail + ("]" if self.is_list else "")
        return tail + ("" if self.head or self.is_list or not self.end else "\n") + self.end

    @property
    def marks(self) -> frozenset[str]:
        """What tells calls from text: those among them that are special tokens are to be kept."""
        return frozenset((self.begin, self.end, *self.inner)) - {""}


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
        ),
    ),
    (
        re.compile(rf"<tool_call>\s*{CALLED}\s*<arg_key>"),
        Form("glm45", "<tool_call>", "</tool_call>", arguments="", head="{name}\n"),
    ),
    (
        re.compile(r"<seed:tool_call>\s*<function="),
        Form(
            "seed_oss",
            "<seed:tool_call>",
            "</seed:tool_call>",
            arguments="",
            head="\n<function={name}>\n",
            needs_tokens=True,
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
            needs_tokens=True,
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
            needs_tokens=True,
        ),
    ),
    (
        re.compile(rf"\[\s*{CALLED}\(\s*{KEY}\s*=\s*[\"']{VALUE}"),
        Form("pythonic", is_bare=True, arguments="", head="[{name}("),
    ),
)
PYTHONIC = frozenset(("pythonic", "lfm2"))
"""Forms whose calls are a list as Python writes it."""
ANY = Form("json", "<tool_call>", "</tool_call>", is_bare=True, behind="<|/tool_call|>")
"""For templates with tools whose form is none of these."""

_TOOL = {
    "type": "function",
    "function": {
        "name": TOLD,
        "description": "d",
        "parameters": {"type": "object", "properties": {KEY: {"type": "string"}}},
    },
}
_USER = {"role": "user", "content": "x"}


def takes_tools(apply: Apply) -> bool:
    """Returns whether a template tells the model of the tools that a request brings."""
    return TOLD in _render(apply, [_USER], add_generation_prompt=True, tools=[_TOOL])


def find_form(apply: Apply) -> Form | None:
    """Returns the form of a template's calls, or None where it shows none that is known."""
    for call_id in ("abcdefghi", f"functions.{CALLED}:0"):  # Kimi's calls have their name there
        for arguments in ({KEY: VALUE}, f'{{"{KEY}": "{VALUE}"}}'):
            function = {"name": CALLED, "arguments": arguments}
            call = {"id": call_id, "type": "function", "function": function}
            for content in ("", None):
                said = {"role": "assistant", "content": content, "tool_calls": [call]}
                text = _render(apply, [_USER, said], tools=[_TOOL])
                before, found, after = text.rpartition(CALLED)
                if found:
                    near = before[-60:] + found + after[:60]
                    return next((form for pattern, form in FORMS if pattern.search(near)), None)
    return None


def _render(apply: Apply, messages: list[dict[str, Any]], **options: Any) -> str:
    try:
        return str(apply(messages, tokenize=False, **options))
    except Exception:  # templates raise what they like about what they do not take
        return ""
