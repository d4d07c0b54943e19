"""What a block of samples leaves as it was, and when it ends."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

from truthgpt_serve.training.generation.undisturbed import Deadline, OutOfTimeError, undisturbed


def numpy_state() -> list[int]:
    state: Any = np.random.get_state()
    return list(state[1])


def test_generators_and_modes_are_as_before_also_after_an_error() -> None:
    module = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Linear(1, 1))
    module[1].eval()
    states = random.getstate(), numpy_state(), torch.get_rng_state()

    def draw() -> None:
        with undisturbed([module], torch.device("cpu")):
            assert not any(one.training for one in module.modules())
            assert not torch.is_grad_enabled()
            random.random()
            np.random.rand()
            torch.rand(1)
            raise ValueError

    with pytest.raises(ValueError, match=r"^$"):
        draw()
    assert [one.training for one in module.modules()] == [True, True, False]
    assert random.getstate() == states[0]
    assert numpy_state() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])
    assert torch.is_grad_enabled()


def test_a_deadline_ends_by_time_or_by_a_wish(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not Deadline(100, lambda: True).is_over()  # it has just begun: nobody is asked yet
    monkeypatch.setattr("truthgpt_serve.training.generation.undisturbed.STOP_EVERY_S", 0.0)
    assert Deadline(100, lambda: True).is_over()
    deadline = Deadline(0, lambda: False)
    with pytest.raises(OutOfTimeError):
        deadline.check()
