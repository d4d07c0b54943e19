"""Reads the metrics of a model's class beside its requests, however they are made."""

from __future__ import annotations

import asyncio
import inspect
import logging
import re
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from truthgpt_serve.threads import contained

logger = logging.getLogger(__name__)

READ_LIMIT_S = 2.0
"""How long a scrape waits for them."""
_SAMPLE = re.compile(
    r"[a-zA-Z_:][\w:]*(?:\s*\{.*\})?\s+([+-]?(?:\d[\d_.]*(?:e[+-]?\d+)?|\.\d+|inf|nan))(\s+-?\d+)?\s*",
    re.ASCII | re.IGNORECASE,
)


class OwnMetrics:
    """The `metrics` of a class, whose faults cost a page nothing but what they are about.

    It runs in a thread of its own, which neither requests nor health checks wait for, and only
    once at a time: where a call does not return, the pages go on without it.

    Args:
        function: The method.
        label: `Class.metrics`, for messages.
        limit_s: How long a scrape waits for it, in seconds.
    """

    def __init__(
        self, function: Callable[[], Any], label: str, *, limit_s: float = READ_LIMIT_S
    ) -> None:
        self._function = function
        self._label = label
        self._limit_s = limit_s
        self._call: Future[str] | None = None
        self._fault = ""

    async def read(self) -> str:
        """Returns what it gives, or as much of that as is in Prometheus' text format."""
        if self._call is None or self._call.done():
            self._call = self._start()
        call = asyncio.wrap_future(self._call)
        done, _ = await asyncio.wait((call,), timeout=self._limit_s)
        if not done:
            return self._without(f"did not return within {self._limit_s:g} s")
        return call.result()

    def _start(self) -> Future[str]:
        call: Future[str] = Future()

        def run() -> None:
            try:
                call.set_result(self._read())
            except Exception as error:
                call.set_result(self._without(f"failed: {error!r}", error))

        # A daemon, so that one which never returns does not keep the process from its end.
        threading.Thread(target=run, name="model-metrics", daemon=True).start()
        return call

    def _read(self) -> str:
        text = contained(self._get)
        if text is None:
            return ""
        if not isinstance(text, str):
            return self._without(f"returned {type(text).__name__}; it returns a text")
        return self._checked(text)

    def _get(self) -> Any:
        result = self._function()
        if inspect.isawaitable(result):
            return asyncio.run(_await(result))
        return result

    def _checked(self, text: str) -> str:
        lines = text.encode(errors="replace").decode().splitlines()
        good = [line for line in lines if _is_good(line)]
        if len(good) < len(lines):
            bad = next(line for line in lines if not _is_good(line))
            self._without(f"has lines that are not in Prometheus' format, such as {bad[:100]!r}")
        else:
            self._fault = ""
        return "".join(f"{line}\n" for line in good)

    def _without(self, fault: str, error: Exception | None = None) -> str:
        """Logs a fault when it is a new one, as a scrape comes every few seconds."""
        if fault != self._fault:
            self._fault = fault
            logger.warning("%s %s", self._label, fault, exc_info=error)
        return ""


def _is_good(line: str) -> bool:
    return not line.strip() or line.startswith("#") or _SAMPLE.fullmatch(line) is not None


async def _await(result: Any) -> Any:
    return await result
