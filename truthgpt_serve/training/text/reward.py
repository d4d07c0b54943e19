"""Finds the reward function of `grpo`, a user's own, by its import path."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from truthgpt_serve.training.errors import TrainingError

Reward = Callable[..., list[float]]


def load_reward(path: str) -> Reward:
    """Returns the function that `module:function` names; the working directory is searched last.

    Raises:
        TrainingError: There is none, or importing its module fails.
    """
    module, _, name = path.partition(":")
    if (folder := os.getcwd()) not in sys.path:
        sys.path.append(folder)  # a console script does not have it, unlike `python -m`
    try:
        function: Any = getattr(importlib.import_module(module), name)
    except (Exception, SystemExit) as error:
        fix = "name a function of a module that is installed or in the working directory"
        raise TrainingError(
            f"training.reward {path!r} cannot be imported: {type(error).__name__}: {error} ({fix})"
        ) from error
    if not callable(function):
        raise TrainingError(f"training.reward {path!r} is not a function (name one)")
    return function  # type: ignore[no-any-return] # what it returns is checked by its use
