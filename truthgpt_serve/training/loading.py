"""Imports the modules that need heavy packages, without what those print meanwhile."""

from __future__ import annotations

import importlib
import logging
import sys
from types import ModuleType

from truthgpt_serve.errors import TruthGPTError
from truthgpt_serve.garbage import rare_collections

_NOISY = (
    # Of extensions for other machines, as peft and diffusers import torchao.
    "torchao",
    "torch.utils._pytree",
    "diffusers.quantizers.torchao.torchao_quantizer",
    # Of torchvision, which nothing here needs.
    "transformers.utils.import_utils",
    # Of parts of a pipeline that an adapter leaves alone, and of an empty list.
    "diffusers.loaders.lora_base",
    "diffusers.models.modeling_utils",
)
"""Loggers whose warnings say nothing to those who train or merge."""
_WITH_BARS = ("transformers", "diffusers")
"""Libraries with a bar for each file that they load or write."""


def load_module(name: str, error: type[TruthGPTError], *, what: str, extras: str) -> ModuleType:
    """Imports a module of this package.

    Args:
        name: Its path.
        error: What is raised where a package is missing.
        what: What needs the package, for the message.
        extras: Those of `truthgpt-serve` that have it.

    Raises:
        TruthGPTError: A package is missing; says what to install.
    """
    for logger in _NOISY:
        logging.getLogger(logger).setLevel(logging.ERROR)
    try:
        with rare_collections():
            module = importlib.import_module(name)
    except ModuleNotFoundError as missing:
        if (missing.name or "").startswith("truthgpt_serve"):
            raise
        fix = f"pip install 'truthgpt-serve[{extras}]'"
        raise error(f"{what} needs the package {missing.name!r} ({fix})") from missing
    _hide_bars()
    return module


def _hide_bars() -> None:
    """Hides the bars of the libraries that are imported by now, but those of downloads."""
    hub = sys.modules.get("huggingface_hub.utils")
    shows_downloads = hub is not None and not hub.are_progress_bars_disabled()
    for name in _WITH_BARS:
        if library := sys.modules.get(name):
            library.utils.logging.disable_progress_bar()
    if hub is not None and shows_downloads:
        hub.enable_progress_bars()
