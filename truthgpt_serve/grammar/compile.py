"""Compiles one grammar with xgrammar, as the engine would, and tries what it costs.

Runs in a process of its own, which may be killed at any time: some grammars take hours, all memory,
or the process with them.
"""

from __future__ import annotations

import json
import random
import re
import time
from typing import Any

import numpy as np
import xgrammar as xgr

from truthgpt_serve.grammar.kinds import find_patterns
from truthgpt_serve.grammar.patterns import rewritten
from truthgpt_serve.grammar.strict import StrictCompiler

MAX_STEP_S = 0.1
"""Longest time that one token may take: every step of the whole batch waits."""

_WALKS = 4
_STEPS = 400
"""Deep enough for what must come first, such as the head of a tool call, token by token."""

_WALK_S = 0.02
"""CPU time for one walk."""


class UnusableError(Exception):
    """The grammar is wrong, empty or too slow; the message is for the client."""


class Compiler:
    """Compiles for one tokenizer.

    Args:
        tokenizer_info: xgrammar's description of the tokenizer, as JSON.
        any_whitespace: Whether JSON may have white space between its parts.
        threads: Threads for one grammar.
        cache_bytes: Compiled grammars that `compile` keeps.
    """

    def __init__(
        self, tokenizer_info: str, *, any_whitespace: bool, threads: int, cache_bytes: int = 0
    ) -> None:
        self._info = xgr.TokenizerInfo.deserialize_json(tokenizer_info)
        self._any_whitespace = any_whitespace
        self._threads = threads
        self._kept = StrictCompiler(
            xgr.GrammarCompiler(
                self._info,
                max_threads=threads,
                cache_enabled=cache_bytes > 0,
                cache_limit_bytes=cache_bytes or -1,
            )
        )

    def compile(self, kind: str, text: str) -> Any:
        """Returns a grammar compiled, or the one kept; kinds and texts as for `examine`."""
        return self._compile(self._kept, kind, text)

    def examine(self, kind: str, text: str) -> float:
        """Compiles a grammar and follows it for some tokens.

        Args:
            kind: `json`, `regex`, `grammar`, `lark` or `structural_tag`.
            text: The grammar.

        Returns:
            The seconds that it takes to compile, without what others took of the machine meanwhile.

        Raises:
            UnusableError: It cannot be compiled, allows nothing, or is too slow.
        """
        compiler = StrictCompiler(
            xgr.GrammarCompiler(self._info, max_threads=self._threads, cache_enabled=False)
        )
        if kind == "regex":
            _check_escapes(text)
        elif kind in ("json", "structural_tag"):
            _check_patterns(text)
        started, used = time.monotonic(), time.process_time()
        try:
            compiled = self._compile(compiler, kind, text)
        except (RuntimeError, ValueError, TypeError, KeyError, RecursionError) as error:
            if "bad_alloc" in str(error):
                raise MemoryError from error
            raise UnusableError(_reason(error)) from error
        seconds = min(time.monotonic() - started, time.process_time() - used)
        self._follow(compiled)
        return seconds

    def _compile(self, compiler: Any, kind: str, text: str) -> Any:
        if kind == "json":
            separators = None if self._any_whitespace else (",", ":")
            return compiler.compile_json_schema(
                text, any_whitespace=self._any_whitespace, separators=separators
            )
        if kind == "regex":
            return compiler.compile_regex(text)
        if kind == "lark":
            return compiler.compile_lark(text)
        if kind == "structural_tag":
            return self._compile_tag(compiler, text)
        return compiler.compile_grammar(text)

    @staticmethod
    def _compile_tag(compiler: Any, text: str) -> Any:
        tag = json.loads(text)
        if "structures" not in tag:
            return compiler.compile_structural_tag(text)
        items = [
            xgr.StructuralTagItem(
                begin=item["begin"], schema=json.dumps(item["schema"]), end=item["end"]
            )
            for item in tag["structures"]
        ]
        return compiler.compile_structural_tag(items, tag["triggers"])

    def _follow(self, compiled: Any) -> None:
        """Takes random allowed tokens for some steps, several times from the start."""
        chance = random.Random(0)  # not a secret; the same verdict every time
        matcher = xgr.GrammarMatcher(compiled)
        mask = xgr.allocate_token_bitmask(1, self._info.vocab_size)
        if not any([self._walk(matcher, mask, chance) for _ in range(_WALKS)]):
            raise UnusableError("no text that this model can write matches it")

    def _walk(self, matcher: Any, mask: Any, chance: random.Random) -> bool:
        """Returns whether a walk ended well: at the grammar's end or after all steps."""
        matcher.reset()
        end = time.thread_time() + _WALK_S
        for _ in range(_STEPS):
            if time.thread_time() > end:
                break
            started = time.thread_time()
            masked = matcher.fill_next_token_bitmask(mask)
            taken = time.thread_time() - started
            self._check_step(taken)
            allowed = self._allowed(mask) if masked else np.arange(self._info.vocab_size)
            if not len(allowed):
                return False
            token = int(chance.choice(allowed))
            started = time.thread_time()
            accepted = matcher.accept_token(token)
            self._check_step(taken + time.thread_time() - started)
            if not accepted or matcher.is_terminated():
                return True
        return True

    @staticmethod
    def _check_step(taken_s: float) -> None:
        if taken_s > MAX_STEP_S:
            raise UnusableError(f"it takes {taken_s:.2g} s to follow it by one token")

    def _allowed(self, mask: Any) -> Any:
        bits = np.unpackbits(mask.numpy().view(np.uint8), bitorder="little")
        return np.flatnonzero(bits[: self._info.vocab_size])


def _check_patterns(text: str) -> None:
    """Refuses patterns of a schema or tag whose answers would be no JSON, or not bound by them.

    xgrammar passes over what looks ahead or behind, and writes marks that JSON escapes as they are
    where no text without them matches a pattern.

    Raises:
        UnusableError: There is such a pattern.
    """
    for pattern in sorted(set(find_patterns(text))):
        _check_escapes(pattern)
        if _LOOKS.search(_SKIPPED.sub("", pattern)):
            raise UnusableError(f"the pattern {pattern[:80]!r} looks ahead or behind")
        schema = json.dumps({"type": "string", "pattern": rewritten(pattern)})
        try:
            rules = str(xgr.Grammar.from_json_schema(schema)).splitlines()
        except RuntimeError:
            continue  # whose fault the compiler names
        own = " ".join(rule for rule in rules if rule.startswith("root_"))
        if _IN_JSON not in own and _RAW.search(own):
            raise UnusableError(
                f"the pattern {pattern[:80]!r} may match quotation marks, backslashes or control "
                "characters, which JSON has as escapes alone"
            )


def _check_escapes(pattern: str) -> None:
    """Refuses escapes that xgrammar takes for their letters, such as the A of a beginning.

    Raises:
        UnusableError: There is one.
    """
    for letter in _ESCAPED.findall(pattern):
        if letter in _ENDS:
            what = "a pattern binds all of the text: leave it out, or write ^ and $"
            raise UnusableError(f"the pattern {pattern[:80]!r} has `\\{letter}`; {what}")
        if letter.isascii() and letter.isalpha() and letter not in _KNOWN:
            raise UnusableError(f"the pattern {pattern[:80]!r} has an unknown escape, `\\{letter}`")


_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_KNOWN = frozenset("abcdefknprstuvwxBDPSW")
"""Letters that xgrammar knows behind a backslash, or refuses by itself."""
_ENDS = frozenset("AZz")
_SKIPPED = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*+\]", re.DOTALL)
"""Escapes and classes of a pattern: brackets in them are characters."""
_LOOKS = re.compile(r"\(\?<?[=!]")
_IN_JSON = "json_string=true"
"""How a grammar shows a pattern that leaves such characters out."""
_RAW = re.compile(r'\\(?:[\\"nrtfv0]|x[01])|\[\^')
"""Such characters in the rules of a pattern, and classes of all but some."""


def _reason(error: Exception) -> str:
    """Returns xgrammar's message without its time and source line."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    text = lines[0]
    if text.startswith("[") and ": " in text:
        text = text.split(": ", 1)[1]
    return text[:300]
