"""Replaces methods of vLLM's classes, and refuses a vLLM whose methods differ from the expected."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

_MENDED = "_truthgpt_mended"


def replace_method(
    owner: type,
    name: str,
    parameters: Sequence[str],
    wrap: Callable[[Callable[..., Any]], Callable[..., Any]],
) -> None:
    """Replaces a method; a second call for the same one does nothing.

    Args:
        owner: The class that defines the method.
        name: The method.
        parameters: With what the method's parameters begin, after `self`.
        wrap: Returns the new method, given the old one.

    Raises:
        RuntimeError: The class has no such method, or it takes something else.
    """
    original = owner.__dict__.get(name)
    if not inspect.isfunction(original):
        raise moved(f"{owner.__qualname__}.{name}")
    if hasattr(original, _MENDED):
        return
    if list(inspect.signature(original).parameters)[1 : len(parameters) + 1] != list(parameters):
        raise moved(f"{owner.__qualname__}.{name}{inspect.signature(original)}")
    mended = functools.wraps(original)(wrap(original))
    setattr(mended, _MENDED, True)
    setattr(owner, name, mended)


def moved(what: str) -> RuntimeError:
    """Returns the error for a part of vLLM that is not as it was."""
    return RuntimeError(
        f"vLLM's {what} is not as it was in 0.32.0: adapt "
        "deployments/vllm/patches/engine_process.py and the "
        "modules that it calls to this version of vLLM, or install the pinned one"
    )
