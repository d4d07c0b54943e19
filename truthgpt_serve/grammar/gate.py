"""Lets a grammar through to the engine only after it was compiled beside it, in time.

The engine compiles the grammars of all requests on few threads: a large one there would hold up
every other structured request, and some never end.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from truthgpt_serve.errors import (
    OverloadedError,
    RequestError,
    TruthGPTError,
    UnavailableError,
)
from truthgpt_serve.grammar.fields import Grammar
from truthgpt_serve.grammar.kinds import find_patterns
from truthgpt_serve.grammar.process import CompilingProcess

logger = logging.getLogger(__name__)

MAX_RUNNING = 4
MAX_WAITING = 64
MAX_REMEMBERED = 4096
"""Verdicts that are kept, of good grammars and bad ones."""

SLOW_FOR_S = 300.0
"""How long a grammar that took too long is refused without another try."""

START_S = 120.0
"""Longest wait for the compiling process to start."""


class Verdict(NamedTuple):
    """What came of compiling a grammar.

    Attributes:
        outcome: `ok`, `invalid`, `slow`, `memory`, `crash`, `turn` or `busy`; `unchecked` where
            nothing compiles beforehand.
        reason: More of it.
        seconds: How long it took.
        until: When it is tried again, on the monotonic clock.
    """

    outcome: str
    reason: str
    seconds: float
    until: float


_UNCHECKED = Verdict("unchecked", "", 0.0, 0.0)


class GrammarGate:
    """Compiles grammars in processes of their own and remembers what came of it.

    Args:
        limits: `serving.limits`.
        describe: Returns the first message for the compiling process; called in a thread. None
            where the engine has another compiler: then sizes alone are checked.
        as_compiled: Turns kind and text of a request's grammar into those of the engine's compiler.
    """

    def __init__(
        self,
        limits: Mapping[str, Any],
        describe: Callable[[], dict[str, Any]] | None,
        as_compiled: Callable[[str, str], tuple[str, str]],
    ) -> None:
        self._limits = limits
        self._describe = describe
        self._as_compiled = as_compiled
        self._worker: CompilingProcess | None = None
        self._starting: asyncio.Task[CompilingProcess] | None = None
        self._verdicts: OrderedDict[bytes, Verdict] = OrderedDict()
        self._pending: dict[bytes, asyncio.Task[Verdict]] = {}

    def start(self) -> None:
        """Starts the compiling process in the background; call it on the event loop."""
        if self._starting is None and self._describe is not None:
            self._starting = asyncio.create_task(self._start(self._describe))
            self._starting.add_done_callback(_report)

    async def _start(self, describe: Callable[[], dict[str, Any]]) -> CompilingProcess:
        try:
            settings = await asyncio.to_thread(describe)
        except Exception:  # of xgrammar, of the tokenizer, of either's dependencies
            logger.exception("this model's grammars cannot be compiled beforehand")
            self._describe = None
            raise
        self._worker = worker = CompilingProcess()
        await worker.open({**settings, "max_running": MAX_RUNNING, "max_waiting": MAX_WAITING})
        return worker

    async def check(self, grammar: Grammar) -> Verdict:
        """Returns when the engine may have this grammar.

        Raises:
            RequestError: It is too large, wrong or too slow; `param` names its field.
            OverloadedError: Too many grammars are being compiled.
            UnavailableError: The compiling process does not start.
        """
        self._check_size(grammar)
        if grammar.kind == "tools":
            return _UNCHECKED
        try:
            kind, text = self._as_compiled(grammar.kind, grammar.text)
        except ValueError as error:
            raise RequestError(f"`{grammar.param}`: {error}", param=grammar.param) from None
        except RecursionError:
            message = f"`{grammar.param}` is nested too deeply"
            raise RequestError(message, param=grammar.param) from None
        verdict = await self._find(kind, text)
        if verdict.outcome not in ("ok", "unchecked"):
            raise self._error(verdict, grammar.param)
        return verdict

    def _check_size(self, grammar: Grammar) -> None:
        key = "max_regex_bytes" if grammar.kind == "regex" else "max_schema_bytes"
        size = len(grammar.text.encode("utf-8", "replace"))
        if size > self._limits[key]:
            raise self._too_large(grammar.param, size, key)
        if grammar.kind in ("json", "structural_tag", "tools"):
            size = sum(len(text.encode("utf-8", "replace")) for text in find_patterns(grammar.text))
            if size > self._limits["max_regex_bytes"]:
                raise self._too_large(grammar.param, size, "max_regex_bytes")

    def _too_large(self, param: str, size: int, key: str) -> RequestError:
        what = "regular expressions" if key == "max_regex_bytes" else "the grammar"
        return RequestError(
            f"`{param}`: {what} of {size} bytes, but this model takes at most "
            f"{self._limits[key]} (`serving.limits.{key}`)",
            param=param,
        )

    async def _find(self, kind: str, text: str) -> Verdict:
        key = hashlib.sha256(f"{kind}\0{text}".encode("utf-8", "surrogatepass")).digest()
        known = self._verdicts.get(key)
        if known is not None and time.monotonic() < known.until:
            self._verdicts.move_to_end(key)
            return known
        task = self._pending.get(key)
        if task is None:
            task = self._pending[key] = asyncio.create_task(self._compile(key, kind, text))
            task.add_done_callback(lambda done: self._forget(key, done))
        # Another request may wait for the same grammar when this one's client leaves.
        return await asyncio.shield(task)

    def _forget(self, key: bytes, done: asyncio.Task[Verdict]) -> None:
        self._pending.pop(key, None)
        if not done.cancelled():
            done.exception()  # the request that wanted it may have gone

    async def _compile(self, key: bytes, kind: str, text: str) -> Verdict:
        worker = await self._ready()
        if worker is None:
            return _UNCHECKED
        answer = await worker.compile(kind, text, float(self._limits["max_grammar_s"]))
        lasting = {"ok": float("inf"), "invalid": float("inf"), "turn": 0.0, "busy": 0.0}
        until = time.monotonic() + lasting.get(answer["outcome"], SLOW_FOR_S)
        verdict = Verdict(answer["outcome"], answer["reason"], answer["seconds"], until)
        self._verdicts[key] = verdict
        while len(self._verdicts) > MAX_REMEMBERED:
            self._verdicts.popitem(last=False)
        return verdict

    async def _ready(self) -> CompilingProcess | None:
        """Returns the process that compiles, or None if this model can have none."""
        if self._worker is not None and self._worker.closed:
            self._worker = self._starting = None
        self.start()
        if self._starting is None:
            return None
        try:
            async with asyncio.timeout(START_S):
                return await asyncio.shield(self._starting)
        except TruthGPTError:
            raise
        except Exception as error:
            self.close()
            if self._describe is None:
                return None
            message = "the process that compiles grammars does not start"
            raise UnavailableError(message, retry_after_s=5) from error

    def _error(self, verdict: Verdict, param: str) -> TruthGPTError:
        outcome, reason = verdict.outcome, verdict.reason
        if outcome in ("busy", "turn"):
            return OverloadedError(
                f"`{param}` cannot be compiled now: others wait for their grammars",
                param=param,
                retry_after_s=2,
            )
        message = {
            "slow": f"takes more than {reason} s to compile (`serving.limits.max_grammar_s`); "
            "make it smaller, or less of it optional or repeated",
            "memory": "takes too much memory to compile; make it smaller",
            "crash": f"cannot be compiled ({reason}); make it smaller or nest it less",
        }.get(outcome, f"cannot constrain the answer: {reason}")
        return RequestError(f"`{param}` {message}", param=param)

    def close(self) -> None:
        """Ends the compiling process."""
        if self._starting is not None:
            self._starting.cancel()
        if self._worker is not None:
            self._worker.close()
        self._worker = self._starting = None


def _report(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error("grammars cannot be compiled: %s", error)
