r"""Writes regular expressions as xgrammar reads them rightly.

Of 0.2.8, these are otherwise than in Python and in JavaScript. A pattern of a JSON text that has
characters beyond ASCII lets characters in that JSON has as escapes alone; with `\u` in their place
it does not. There `(a+b)?` takes `a`, and `(ab+|){0,}` takes `b`; `(a+b){0,1}` and `(ab+|)*` do
not. And `.` takes line breaks in a pattern for all of an answer.
"""

from __future__ import annotations

import json
import re
from typing import Any

from truthgpt_serve.grammar.kinds import PLAIN_KEYWORDS, SCHEMAS_BY_NAME

_PART = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*+\]|\)\?|\{[01],\}|.", re.DOTALL)
"""An escape, a class, the end of a group that may be missing, a quantifier, or a character."""
_SAME = {")?": "){0,1}", "{0,}": "*", "{1,}": "+"}
_BEYOND = re.compile(r"\\?([^\x00-\x7f\ud800-\udfff])")
_LINE = r"[^\n\r\u2028\u2029]"
"""What `.` is: neither Python's nor JavaScript's takes more than this."""


def rewritten(pattern: str, *, is_all: bool = False) -> str:
    """Returns a pattern that means the same as in Python and JavaScript.

    Args:
        pattern: A regular expression.
        is_all: Whether it binds an answer as it is, rather than a text within JSON.
    """

    def write(part: str) -> str:
        if part == "." and is_all:
            return _LINE
        return _SAME.get(part) or _BEYOND.sub(_escaped, part)

    return "".join(map(write, _PART.findall(pattern)))


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[1])
    return f"\\u{code:04x}" if code < 0x10000 else f"\\u{{{code:x}}}"


def with_patterns_rewritten(text: str) -> str:
    """Returns a JSON schema, or a structural tag, with its patterns rewritten."""
    if "pattern" not in text:
        return text
    try:
        tree = json.loads(text)
        return json.dumps(tree) if _rewrite(tree) else text
    except (ValueError, RecursionError):
        return text  # whose fault the compiler names


def _rewrite(tree: Any) -> bool:
    """Rewrites the patterns of a tree in place; returns whether any is another one now."""
    is_changed, waiting = False, [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, list):
            waiting += node
        elif isinstance(node, dict):
            is_changed |= _rewrite_own(node)
            for key, value in node.items():
                if key in SCHEMAS_BY_NAME and isinstance(value, dict):
                    waiting += value.values()
                elif key not in PLAIN_KEYWORDS:
                    waiting.append(value)
    return is_changed


def _rewrite_own(node: dict[str, Any]) -> bool:
    changed: dict[str, Any] = {}
    if isinstance(pattern := node.get("pattern"), str):
        changed["pattern"] = rewritten(pattern, is_all=node.get("type") == "regex")
    if isinstance(named := node.get("patternProperties"), dict):
        changed["patternProperties"] = {rewritten(name): value for name, value in named.items()}
    is_changed = any(json.dumps(node[key]) != json.dumps(changed[key]) for key in changed)
    node.update(changed)
    return is_changed
