"""Environment of the engine's processes, and turns for replicas that share a GPU.

Imports neither vLLM nor torch. Everything here is set before the engine's processes start.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
import re
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any

from deployments.vllm.config import gpu_memory_share
from deployments.vllm.orphans import switch_on
from truthgpt_serve.errors import UnavailableError

CPU_KV_CACHE_BYTES = 1 << 30
"""KV cache on CPU when neither the engine argument `kv_cache_memory_bytes` nor the environment
variable `VLLM_CPU_KVCACHE_SPACE` (GiB) says otherwise. More holds more and longer requests at the
same time, and starts later: the engine clears it, which takes about 3 s for a GiB on two cores."""

_LOOPBACK = {
    "VLLM_HOST_IP": "127.0.0.1",
    "GLOO_SOCKET_IFNAME": "lo",
    "NCCL_SOCKET_IFNAME": "lo",
}
GPU_TURN_TIMEOUT_S = 1800.0
"""Longest wait for the other replicas of a GPU to start: some large models, one after another."""
_POLL_S = 0.2


def prepare_environment(cfg: Mapping[str, Any]) -> None:
    """Sets what the engine's processes inherit on every kind of hardware."""
    switch_on()
    # What the engine's own command line does: a forked child of a threaded process can hang.
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
    # The engine compiles a pattern again that was compiled in time, but behind its own steps.
    os.environ.setdefault("VLLM_REGEX_COMPILATION_TIMEOUT_S", "60")
    # Engines of one node talk over the loopback address. Ray's executor, for several GPUs, compares
    # the addresses of nodes.
    gpus = cfg["hardware"]["gpus"]
    if gpus == "auto" or gpus <= 1:
        for name, value in _LOOPBACK.items():
            os.environ.setdefault(name, value)
    # A server of the user's own data does not report its use to anyone unless told to.
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")


def prepare_cpu(
    cfg: Mapping[str, Any], environ: MutableMapping[str, str] = os.environ
) -> int | None:
    """Sets the threads of a CPU engine; returns its KV cache in bytes.

    As many threads as `hardware.cpus`, at least one, and not bound to cores: bound ones, which are
    the engine's own default, would put every model of a machine on the same cores. A
    `VLLM_CPU_OMP_THREADS_BIND` from outside keeps its meaning. None means that
    `VLLM_CPU_KVCACHE_SPACE` decides.
    """
    if "VLLM_CPU_OMP_THREADS_BIND" not in environ:
        environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        environ["OMP_NUM_THREADS"] = str(max(1, int(cfg["hardware"]["cpus"])))
    engine = cfg["serving"]["engine"]
    if engine.get("enforce_eager"):
        # That bars the model from being compiled, and not a function here and there: the first
        # request for log probabilities would wait for a C++ compiler, and all others with it.
        environ.setdefault("TORCH_COMPILE_DISABLE", "1")
    given = engine.get("kv_cache_memory_bytes")
    if given is not None:
        # The engine lets this variable win over the argument; the model's own file should.
        environ.pop("VLLM_CPU_KVCACHE_SPACE", None)
        return None
    return None if environ.get("VLLM_CPU_KVCACHE_SPACE") else CPU_KV_CACHE_BYTES


def binds_threads(environ: Mapping[str, str] = os.environ) -> bool:
    """Returns whether a CPU engine binds its threads to cores; call `prepare_cpu` first."""
    return environ.get("VLLM_CPU_OMP_THREADS_BIND") != "nobind"


@contextlib.asynccontextmanager
async def gpu_turn(
    cfg: Mapping[str, Any], *, timeout_s: float = GPU_TURN_TIMEOUT_S, folder: Path | None = None
) -> AsyncIterator[None]:
    """Waits until no other replica starts on this replica's GPU, and holds the turn.

    The engine measures free memory while it starts, and fails if a neighbor changes it meanwhile.
    Replicas with whole GPUs, or none, do not wait. The kernel gives up the turn of a process that
    dies.

    Raises:
        UnavailableError: The turn did not come within `timeout_s`.
    """
    if gpu_memory_share(cfg) is None:
        yield
        return
    path = turn_file(folder)
    # Not through a link: another user may have put one into a folder for all.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    with open(descriptor, "a") as file:
        await _lock(file.fileno(), path, timeout_s)
        yield


def turn_file(folder: Path | None = None) -> Path:
    """Returns the lock file of this process's GPU, by default in the system's temporary folder."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
    label = visible if re.fullmatch(r"[\w.-]{1,64}", visible) else _digest(visible)
    return (
        folder or Path(tempfile.gettempdir())
    ) / f"truthgpt-serve-gpu-{os.getuid()}-{label}.lock"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


async def _lock(descriptor: int, path: Path, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise UnavailableError(
                    f"other replicas on the same GPU were still starting after {timeout_s:g} s "
                    f"(lock file {path}); look at their logs, or give the model a whole GPU"
                ) from None
            await asyncio.sleep(_POLL_S)
        else:
            return
