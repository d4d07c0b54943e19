"""Runs the checks of a client program and prints an outcome for each, as a line of JSON.

The program knows the service by the variables `BASE_URL` (which ends with `/v1`) and `MODEL`.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

BASE_URL = os.environ["BASE_URL"]
ROOT_URL = BASE_URL.removesuffix("/v1")
MODEL = os.environ["MODEL"]
MARK = "outcome: "
PROMPT = "Tell me a story about Mia and a red boat."
_REFUSED = re.compile(r"Error code: 400|status_code: 400|HTTP 400|'status': 400|BadRequestError")

_checks: list[tuple[str, tuple[str, ...], Callable[[], Any]]] = []


def check(name: str, *needs: str) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """Registers a check.

    Args:
        name: What the table calls it.
        needs: Capabilities of the model's card that it cannot do without.
    """

    def register(function: Callable[[], Any]) -> Callable[[], Any]:
        _checks.append((name, needs, function))
        return function

    return register


def errors_of(error: BaseException, depth: int = 0) -> Iterator[BaseException]:
    """Yields an error and those behind it."""
    yield error
    inner = [error.__cause__, error.__context__, *getattr(error, "exceptions", ())]
    for one in inner:
        if isinstance(one, BaseException) and depth < 12:
            yield from errors_of(one, depth + 1)


def is_refusal(error: BaseException) -> bool:
    """Returns whether the service answered with status 400."""
    for one in errors_of(error):
        found = (getattr(one, "status_code", None), getattr(one, "status", None))
        status = next((value for value in found if isinstance(value, int)), None)
        if status == 400 or (status is None and _REFUSED.search(f"{one!r} {one}")):
            return True
    return False


def is_unbound(error: BaseException) -> bool:
    """Returns whether an answer had another form than was asked for."""
    if isinstance(error, AssertionError | LookupError | ValueError):
        return True
    if type(error).__name__ in ("GraphRecursionError", "UnexpectedModelBehavior"):
        return True
    return "validation error" in str(error) or "expected ident" in str(error)


def run() -> None:
    """Runs the checks, all or those of which an argument is a part of the name."""
    only = sys.argv[1:]
    for name, needs, function in _checks:
        if only and not any(part in name for part in only):
            continue
        outcome, detail = "passed", ""
        try:
            value = function()
            if inspect.isawaitable(value):
                value = asyncio.run(_finish(value))
            detail = value if isinstance(value, str) else ""
        except Exception as error:
            traceback.print_exc()
            # An answer that nothing binds has another form than was asked for.
            outcome = "refused" if is_refusal(error) else "failed"
            unbound = any(map(is_unbound, errors_of(error)))
            if unbound and outcome == "failed":
                outcome = "unbound"
            detail = f"{type(error).__name__}: {error}"[:400]
        line = {"check": name, "needs": needs, "outcome": outcome, "detail": detail}
        print(MARK + json.dumps(line), flush=True)


async def _finish(value: Any) -> Any:
    return await value
