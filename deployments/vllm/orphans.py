"""Makes the engine's processes die with the process that started them.

Knows nothing of vLLM: the engine calls `die_with_parent` in each of its processes, because
`pyproject.toml` names it in the entry-point group `vllm.general_plugins`. A replica killed with
SIGKILL cannot tell its children anything, so the kernel has to.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys

PLUGIN_NAME = "truthgpt_die_with_parent"
"""The entry point's name."""

SWITCH = "TRUTHGPT_DIE_WITH_PARENT"
"""Environment variable that a replica sets to 1. Without it nothing happens, so that vLLM's other
users in the same environment are left alone."""

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Asks the kernel to kill this process when its parent dies; at once if it died already.

    The signal is sent when the parent's *thread* that started this process ends, so an engine must
    be started from a thread that lives as long as the engine does.
    """
    parent = multiprocessing.parent_process()
    if parent is None or os.environ.get(SWITCH) != "1" or sys.platform != "linux":
        return
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl(PR_SET_PDEATHSIG): {os.strerror(number)}")
    if os.getppid() != parent.pid:
        os.kill(os.getpid(), signal.SIGKILL)


def switch_on() -> None:
    """Switches this on for the children that the current process is about to start."""
    os.environ[SWITCH] = "1"
    allowed = os.environ.get("VLLM_PLUGINS")
    if allowed is not None and PLUGIN_NAME not in allowed.split(","):
        os.environ["VLLM_PLUGINS"] = ",".join(filter(None, (*allowed.split(","), PLUGIN_NAME)))
