"""What this machine is: interpreter, cores, memory, GPUs.

Knows neither the service nor families; imports no engine.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from truthgpt_serve.contract import Probe

OLDEST_PYTHON = (3, 11)
"""As `requires-python` in pyproject.toml."""
TIMEOUT_S = 20.0
GIB = 1 << 30
_GPU_FIELDS = "driver_version,name,memory.total,memory.free,compute_cap"
_MEMORY_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


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
    rows = dict(
        line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines() if ":" in line
    )
    total, free = (int(rows[key].split()[0]) * 1024 for key in ("MemTotal", "MemAvailable"))
    limits = [int(text) for text in map(_read, _MEMORY_LIMITS) if text.isdigit()]
    total = min([total, *limits])
    return f"{total / GIB:.1f} GiB, {min(total, free) / GIB:.1f} GiB available"


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _gpus(environ: Mapping[str, str]) -> Iterator[Probe]:
    fix = "none is needed to serve on CPU; else install NVIDIA's driver"
    command = shutil.which("nvidia-smi", path=environ.get("PATH"))
    if command is None:
        yield Probe("GPU", False, "nvidia-smi is not on the PATH: no NVIDIA driver", fix)
        return
    try:
        answer = subprocess.run(
            [command, f"--query-gpu={_GPU_FIELDS}", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        yield Probe("GPU", False, f"nvidia-smi does not answer: {type(error).__name__}", fix)
        return
    rows = [line.split(", ") for line in answer.stdout.splitlines() if line.count(", ") == 4]
    if answer.returncode != 0 or not rows:
        said = (answer.stdout or answer.stderr).strip().partition("\n")[0]
        yield Probe("GPU", False, f"nvidia-smi failed: {said}", fix)
        return
    for number, (driver, name, total, free, capability) in enumerate(rows):
        detail = f"{name}, {total}, {free} free, compute capability {capability}, driver {driver}"
        yield Probe(f"GPU {number}", True, detail)
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        yield Probe("visible GPUs", bool(visible.strip()), f"CUDA_VISIBLE_DEVICES={visible}")
