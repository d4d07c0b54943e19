"""Closes the models that a program leaves open: when they are collected, and before it ends.

An engine's threads must end before the interpreter does: native code that still runs then ends the
process with "terminate called".
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import warnings
import weakref
from typing import Any, Protocol

logger = logging.getLogger(__name__)

CLOSE_TIMEOUT_S = 30.0
"""Longest wait for asynchronous code that closes a model."""


class Closable(Protocol):
    """What closes one model; it must not refer to the object that the program holds."""

    instance: Any
    label: str

    def close_unused(self) -> None:
        """Closes the model, in any thread; without effect on one that is closed."""


_open: set[Closable] = set()


def close_with(owner: object, closable: Closable) -> None:
    """Has the model closed when `owner` is collected, or else before the interpreter ends."""
    _open.add(closable)
    weakref.finalize(owner, _close_collected, closable).atexit = False


def forget(closable: Closable) -> None:
    """Says that the model is closed."""
    _open.discard(closable)


def _close_collected(closable: Closable) -> None:
    if closable not in _open:
        return
    try:
        if callable(getattr(closable.instance, "close", None)):
            message = f"{closable.label} was not closed: call close(), or use it in a `with` block"
            warnings.warn(message, ResourceWarning, stacklevel=2)
    finally:
        _close(closable)


def _close_all() -> None:
    for closable in list(_open):
        _close(closable)


def _close(closable: Closable) -> None:
    forget(closable)
    try:
        closable.close_unused()
    except Exception:
        logger.exception("%s could not be closed", closable.label)


# `atexit` is too late: executors, which an engine may need to close, take no work then. It is also
# not called in the processes of `multiprocessing`.
_register: Any = getattr(threading, "_register_atexit", atexit.register)
_register(_close_all)
os.register_at_fork(after_in_child=_open.clear)  # a child has neither the threads nor the engine
