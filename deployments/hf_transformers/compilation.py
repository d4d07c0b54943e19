"""Compiles a model, proved by real calls before it serves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from truthgpt_serve.device import refused_compiler


def compile_model(model: Any, mode: str, trials: Sequence[Callable[[], object]]) -> None:
    """Compiles a model in place and warms it up, so that no request waits for the compiler.

    Args:
        model: The module.
        mode: One of torch.compile's modes.
        trials: Calls of the model with the kinds of inputs that requests will bring.

    Raises:
        ConfigError: The compiler does not work here, or not with this model.
    """
    torch.compiler.reset()  # what an earlier model of the process compiled counts for its limits
    settings = torch._dynamo.config
    gives_up = settings.fail_on_recompile_limit_hit
    try:
        # Past that limit the compiler silently leaves the model as it was. Not as a context: that
        # would hold in this thread only, and texts are made in another.
        settings.fail_on_recompile_limit_hit = True
        model.compile(mode=mode, dynamic=True)
        with torch.inference_mode():
            for trial in trials:
                trial()
    except Exception as error:
        raise refused_compiler(error) from error
    finally:
        settings.fail_on_recompile_limit_hit = gives_up
