"""What this machine has: GPUs, and memory."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

PROBE_TIMEOUT_S = 20.0
_FIELDS = "driver_version,name,memory.total,memory.free,compute_cap"


class DriverError(Exception):
    """The NVIDIA driver is not there, or does not answer; the text says which."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU, in the words of `nvidia-smi`.

    Attributes:
        driver: Version of the driver.
        name: Such as `NVIDIA H100 80GB HBM3`.
        memory: Such as `81559 MiB`.
        free: Unused memory.
        capability: Compute capability, such as `9.0`.
    """

    driver: str
    name: str
    memory: str
    free: str
    capability: str


def probe_gpus(environ: Mapping[str, str] = os.environ) -> list[Gpu]:
    """Returns all GPUs of this machine, visible to this process or not.

    Raises:
        DriverError: `nvidia-smi` is not on the PATH, or lists none.
    """
    command = shutil.which("nvidia-smi", path=environ.get("PATH"))
    if command is None:
        raise DriverError("nvidia-smi is not on the PATH: no NVIDIA driver")
    try:
        answer = subprocess.run(
            [command, f"--query-gpu={_FIELDS}", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=PROBE_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DriverError(f"nvidia-smi does not answer: {type(error).__name__}") from error
    rows = [line.split(", ") for line in answer.stdout.splitlines() if line.count(", ") == 4]
    if answer.returncode != 0 or not rows:
        said = (answer.stdout or answer.stderr).strip().partition("\n")[0]
        raise DriverError(f"nvidia-smi failed: {said}")
    return [Gpu(*(part.strip() for part in row)) for row in rows]
