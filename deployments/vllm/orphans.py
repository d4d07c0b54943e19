"""Ends the engine's processes with the process that started them, and patches them.

The engine calls `die_with_parent` in each of its processes, because `pyproject.toml` names it in
the entry-point group `vllm.general_plugins`. A replica killed with SIGKILL cannot tell its children
anything, so the kernel has to.

The engine loads its plug-ins only after it has greeted its parent, and waits minutes for the
answer of one that died meanwhile: `bind_children` comes before.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import multiprocessing.reduction
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from truthgpt_serve.cluster.torch_store import listen_on_named_address
from truthgpt_serve.garbage import rare_collections

PLUGIN_NAME = "truthgpt_die_with_parent"
"""The entry point's name."""

SWITCH = "TRUTHGPT_DIE_WITH_PARENT"
"""Environment variable that a replica sets to 1. Without it nothing happens, so that vLLM's other
users in the same environment are left alone."""

_COPIED_TO_ACTORS = "VLLM_RAY_EXTRA_ENV_VARS_TO_COPY"
_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Asks the kernel to kill this process when its parent dies; at once if it died already.

    Also mends what is wrong in this release of the engine, as the one plug-in that it loads.
    It closes the engine's meeting place to strangers too.

    The signal is sent when the parent's *thread* that started this process ends, so an engine must
    be started from a thread that lives as long as the engine does.
    """
    _arriving.close()
    if os.environ.get(SWITCH) == "1":
        listen_on_named_address()
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid is not None:
        _bind_to(parent.pid)
    if os.environ.get(SWITCH) == "1":
        from deployments.vllm.engine_errors import note_errors
        from deployments.vllm.patches.engine_process import mend_workers

        note_errors()
        mend_workers()


def _bind_to(parent: int) -> None:
    if os.environ.get(SWITCH) != "1" or sys.platform != "linux":
        return
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl(PR_SET_PDEATHSIG): {os.strerror(number)}")
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def switch_on() -> None:
    """Switches this on for the children that the current process is about to start."""
    os.environ[SWITCH] = "1"
    # Workers that are actors on other nodes inherit nothing; the engine copies what is named here.
    copied = filter(None, os.environ.get(_COPIED_TO_ACTORS, "").split(","))
    os.environ[_COPIED_TO_ACTORS] = ",".join(dict.fromkeys([*copied, SWITCH]))
    allowed = os.environ.get("VLLM_PLUGINS")
    if allowed is not None and PLUGIN_NAME not in allowed.split(","):
        os.environ["VLLM_PLUGINS"] = ",".join(filter(None, (*allowed.split(","), PLUGIN_NAME)))


@contextlib.contextmanager
def bind_children() -> Iterator[None]:
    """Binds each process that the current thread spawns in this block, from its first moment.

    `die_with_parent` comes too late for one whose parent dies before the plug-ins load.
    """
    global _binding_thread
    multiprocessing.reduction.register(multiprocessing.get_context("spawn").Process, _reduce)
    _binding_thread = threading.get_ident()
    try:
        yield
    finally:
        _binding_thread = None


_binding_thread: int | None = None


def _reduce(process: Any) -> tuple[Any, ...]:
    """Pickles a process object so that the child is bound as it reads it."""
    make, arguments, *state = process.__reduce_ex__(pickle.HIGHEST_PROTOCOL)
    if _binding_thread != threading.get_ident():
        return (make, arguments, *state)
    # The child cannot ask for `parent_process()` yet.
    return (_arrive, (os.getpid(), make, arguments), *state)


_arriving = contextlib.ExitStack()
"""What holds in an engine's process until it has imported the engine and loads its plug-ins."""


def _arrive(parent: int, make: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    _bind_to(parent)
    _arriving.enter_context(rare_collections())
    return make(*arguments)
