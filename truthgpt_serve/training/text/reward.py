"""Finds the reward function of `grpo`, a user's own, by its import path, and checks its answers."""

from __future__ import annotations

import functools
import importlib
import inspect
import math
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from truthgpt_serve.training.errors import TrainingError

Reward = Callable[..., Any]


def load_reward(path: str) -> Reward:
    """Returns the function that `module:function` names, checked at every call.

    The working directory is searched last, or what `TrainingJob.search_modules` has added.

    Raises:
        TrainingError: There is none, or importing its module fails.
    """
    module, _, name = path.partition(":")
    if (folder := os.getcwd()) not in sys.path:
        sys.path.append(folder)  # a console script does not have it, unlike `python -m`
    try:
        function: Any = getattr(importlib.import_module(module), name)
    except (Exception, SystemExit) as error:
        fix = (
            "name a function of a module that is installed, in the working directory or beside "
            "the YAML file"
        )
        raise TrainingError(
            f"training.reward {path!r} cannot be imported: {type(error).__name__}: {error} ({fix})"
        ) from error
    if not callable(function):
        raise TrainingError(f"training.reward {path!r} is not a function (name one)")
    return _checked(function, path)


def _checked(function: Reward, path: str) -> Reward:
    """Returns the function, sync or async, with its answers checked."""
    called = getattr(function, "__call__", None)  # noqa: B004 # an object may have an async one
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(called):

        @functools.wraps(function)
        async def wait(**columns: Any) -> list[float]:
            return check_rewards(await function(**columns), len(columns["completions"]), path)

        return wait

    @functools.wraps(function)
    def call(**columns: Any) -> list[float]:
        return check_rewards(function(**columns), len(columns["completions"]), path)

    return call


def check_rewards(found: Any, number: int, path: str) -> list[float]:
    """Returns what a reward function gave as numbers.

    Args:
        found: What it returned: a list, an array or a tensor.
        number: Of the completions.
        path: The function's, for the message.

    Raises:
        TrainingError: It is not one finite number for each completion.
    """
    fix = f"return a list of {number} numbers, one for each completion"
    is_list = isinstance(found, Sequence) and not isinstance(found, str | bytes)
    if not is_list and not callable(getattr(found, "tolist", None)):
        raise TrainingError(f"training.reward {path!r} returned {_shown(found)} ({fix})")
    rewards = list(found) if is_list else found.tolist()
    if not isinstance(rewards, list) or len(rewards) != number:
        count = len(rewards) if isinstance(rewards, list) else 1
        raise TrainingError(f"training.reward {path!r} returned {count} rewards ({fix})")
    numbers = []
    for at, reward in enumerate(rewards):
        try:
            numbers.append(float(reward))
        except (TypeError, ValueError):
            numbers.append(math.nan)
        if not math.isfinite(numbers[-1]):
            raise TrainingError(
                f"training.reward {path!r} returned {_shown(reward)} for completion {at} ({fix})"
            )
    return numbers


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
