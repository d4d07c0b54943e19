"""What the engine compiles with: nvcc for FlashInfer's sampler, a C++ compiler for models on CPU.

Imports neither vLLM nor torch.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Mapping, MutableMapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from truthgpt_serve.errors import ConfigError, Fault

SAMPLER_VARIABLE = "VLLM_USE_FLASHINFER_SAMPLER"
COMPILED_KERNELS = "flashinfer_jit_cache"
"""The package with FlashInfer's kernels, compiled beforehand."""
DEFAULT_CUDA_HOME = "/usr/local/cuda"
_NO_COMPILATION = (0, "0", "NONE", "none", "O0")

logger = logging.getLogger(__name__)

HasPackage = Callable[[str], bool]


def _is_installed(package: str) -> bool:
    return find_spec(package) is not None


def prepare_compilers(cfg: Mapping[str, Any], *, on_cpu: bool) -> None:
    """Checks or does without what the engine would compile with, before its processes start.

    Raises:
        ConfigError: See `check_cxx`.
    """
    if on_cpu:
        check_cxx(cfg)
    else:
        choose_sampler()


def choose_sampler(
    environ: MutableMapping[str, str] = os.environ, has_package: HasPackage = _is_installed
) -> bool:
    """Switches FlashInfer's sampler off where its kernels cannot be had, and says so.

    vLLM uses that sampler on every NVIDIA GPU, and its kernels are compiled as the engine starts.
    The engine's wheels bring no compiler for that, and without one it would not start
    (https://github.com/vllm-project/vllm/issues/49497). A variable that is set stays as it is.

    Args:
        environ: The environment that the engine's processes inherit.
        has_package: Tells whether a package is installed.

    Returns:
        Whether it was switched off.
    """
    if SAMPLER_VARIABLE in environ or has_package(COMPILED_KERNELS):
        return False
    missing = [
        name
        for name, found in (
            ("nvcc", find_nvcc(environ)),
            ("ninja", shutil.which("ninja", path=environ.get("PATH"))),
            ("C++ compiler", find_cxx(environ)),
        )
        if found is None
    ]
    if not missing:
        return False
    environ[SAMPLER_VARIABLE] = "0"
    logger.warning(
        "FlashInfer's sampler is off (%s=0), because its kernels cannot be compiled here: there is "
        "no %s. vLLM's own sampler is used. Install the CUDA toolkit, or the package "
        "flashinfer-jit-cache of FlashInfer's version, to have it.",
        SAMPLER_VARIABLE,
        " and no ".join(missing),
    )
    return True


def find_nvcc(environ: Mapping[str, str] = os.environ) -> str | None:
    """Returns the nvcc that FlashInfer runs, of `CUDA_HOME`, `PATH` or its default, or None."""
    home = environ.get("CUDA_HOME") or environ.get("CUDA_PATH")
    if home is None:
        nvcc = shutil.which("nvcc", path=environ.get("PATH"))
        home = str(Path(nvcc).parents[1]) if nvcc else DEFAULT_CUDA_HOME
    return shutil.which(str(Path(home) / "bin" / "nvcc"))


def find_cxx(environ: Mapping[str, str] = os.environ) -> str | None:
    """Returns the C++ compiler that torch would run, or None: `CXX`, else `g++`."""
    return shutil.which(environ.get("CXX") or "g++", path=environ.get("PATH"))


def check_cxx(cfg: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> None:
    """Checks that a model on CPU can be compiled, as vLLM does unless it is told not to.

    Raises:
        ConfigError: There is no C++ compiler, and the configuration does not do without.
    """
    engine = cfg["serving"]["engine"]
    compilation = engine.get("compilation_config") or {}
    if (
        engine.get("enforce_eager")
        or compilation.get("mode") in _NO_COMPILATION
        or engine.get("optimization_level") in _NO_COMPILATION
        or environ.get("TORCH_COMPILE_DISABLE") == "1"
        or find_cxx(environ) is not None
    ):
        return
    wanted = environ.get("CXX") or "g++"
    message = f"is not set, so vLLM compiles the model, and there is no C++ compiler ({wanted})"
    fix = "install one (apt-get install g++), or write true"
    raise ConfigError([Fault("serving.engine.enforce_eager", message, fix)])
