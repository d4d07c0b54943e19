"""What this machine is: interpreter, cores, memory, GPUs.

Imports no engine.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil

from truthgpt_serve.cluster.machine import DriverError, probe_gpus
from truthgpt_serve.contract import Probe
from truthgpt_serve.hardware.memory import total_memory

OLDEST_PYTHON = (3, 11)
"""As `requires-python` in pyproject.toml."""
GIB = 1 << 30


def probe_python() -> Probe:
    """Whether the interpreter is new enough."""
    version = platform.python_version()
    if sys.version_info < OLDEST_PYTHON:
        oldest = ".".join(map(str, OLDEST_PYTHON))
        return Probe("Python", False, f"{version} is too old", f"install Python {oldest} or later")
    return Probe("Python", True, f"{version} at {sys.executable}")


def probe_hardware(environ: Mapping[str, str] = os.environ) -> Iterator[Probe]:
    """Yields the operating system, cores, memory, and each GPU or why there is none."""
    yield Probe("operating system", True, f"{platform.platform()}, {platform.machine()}")
    cores, seen = len(os.sched_getaffinity(0)), os.cpu_count() or 0
    limited = f" of {seen}" if cores < seen else ""
    yield Probe("CPU", True, f"{cores}{limited} cores{_processor()}")
    yield Probe.attempt("memory", _memory)
    yield from _gpus(environ)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    values = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    fields = {key.strip(): value for key, value in values.items()}
    flags = set(fields.get("flags", "").split())
    fast = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in flags]
    return f",{fields.get('model name', '')} ({', '.join(fast) or 'no AVX2'})"


def _memory() -> str:
    total, available = total_memory(), psutil.virtual_memory().available
    return f"{total / GIB:.1f} GiB, {min(total, available) / GIB:.1f} GiB available"


def _gpus(environ: Mapping[str, str]) -> Iterator[Probe]:
    try:
        gpus = probe_gpus(environ)
    except DriverError as error:
        fix = "none is needed to serve on CPU; else install NVIDIA's driver"
        yield Probe("GPU", False, str(error), fix)
        return
    for number, gpu in enumerate(gpus):
        memory = f"{gpu.memory}, {gpu.free} free"
        software = f"compute capability {gpu.capability}, driver {gpu.driver}"
        yield Probe(f"GPU {number}", True, f"{gpu.name}, {memory}, {software}")
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        yield Probe("visible GPUs", bool(visible.strip()), f"CUDA_VISIBLE_DEVICES={visible}")
