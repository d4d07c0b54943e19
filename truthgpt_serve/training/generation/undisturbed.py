"""Runs a model in the midst of its training as if nothing had been run, and not for too long."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

STOP_EVERY_S = 0.5
"""How often the wish to stop is looked for."""


class OutOfTimeError(Exception):
    """The samples have taken as long as they may."""


class Deadline:
    """Says when samples have to end.

    Args:
        seconds: That all samples of an evaluation may take.
        should_stop: Whether the run was asked to end.
    """

    def __init__(self, seconds: float, should_stop: Callable[[], bool]) -> None:
        self._end = time.monotonic() + seconds
        self._should_stop = should_stop
        self._asked = time.monotonic()
        self._stop = False

    def is_over(self) -> bool:
        """Returns whether the time is up, or the run was asked to end."""
        now = time.monotonic()
        if now - self._asked >= STOP_EVERY_S:
            self._asked = now
            self._stop = self._stop or self._should_stop()
        return self._stop or now >= self._end

    def check(self) -> None:
        """Raises `OutOfTimeError` where `is_over`."""
        if self.is_over():
            raise OutOfTimeError


@contextmanager
def undisturbed(modules: Iterable[Any], device: Any) -> Iterator[None]:
    """Evaluates modules without gradients; afterwards they and all generators are as before.

    Compiled modules run as they were written: to compile them for other shapes takes minutes.

    Args:
        modules: Of torch.
        device: The worker's own, whose generator may be drawn from.
    """
    training = [one for module in modules for one in module.modules() if one.training]
    devices = [device] if device.type == "cuda" else []
    states = random.getstate(), np.random.get_state()
    try:
        for one in training:
            one.training = False
        with (
            torch.random.fork_rng(devices=devices),
            torch.no_grad(),
            torch.compiler.set_stance("force_eager"),
        ):
            yield
    finally:
        for one in training:
            one.training = True
        random.setstate(states[0])
        np.random.set_state(states[1])
        if devices:
            torch.cuda.empty_cache()
