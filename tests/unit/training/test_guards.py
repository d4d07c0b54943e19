"""What ends a run before it does harm: a full disk, a loss that is no number."""

from __future__ import annotations

from pathlib import Path

import pytest

from truthgpt_serve.training.errors import TrainingError
from truthgpt_serve.training.guards import MARGIN_BYTES, check_loss, check_space
from truthgpt_serve.training.run_folder import (
    begin_checkpoint,
    finish_checkpoint,
)


def add_checkpoint(folder: Path, step: int, content: str = "x") -> Path:
    unfinished = begin_checkpoint(folder, step)
    (unfinished / "weights").write_text(content)
    return finish_checkpoint(unfinished)


def test_space_is_checked_with_a_margin(tmp_path: Path) -> None:
    check_space(tmp_path, 100, lambda _: 100 + MARGIN_BYTES)
    with pytest.raises(TrainingError, match="the disk is full") as caught:
        check_space(tmp_path, 101, lambda _: 100 + MARGIN_BYTES)
    assert str(tmp_path) in str(caught.value)
    assert "there is no checkpoint yet" in str(caught.value)


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), -float("inf")])
def test_a_loss_must_be_a_number(loss: float, tmp_path: Path) -> None:
    add_checkpoint(tmp_path, 4)
    check_loss(tmp_path, 5, 1.0)
    with pytest.raises(TrainingError, match=r"the loss of step 6 is .*step-4"):
        check_loss(tmp_path, 6, loss)
