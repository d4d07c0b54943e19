from __future__ import annotations

import dataclasses
import inspect

import pytest

from truthgpt_serve.training.errors import TrainingError
from truthgpt_serve.training.text.preferences import experimental


def test_orpo_is_where_the_adapter_looks_and_takes_what_it_is_given() -> None:
    arguments, trainer = experimental.load_orpo()
    names = {field.name for field in dataclasses.fields(arguments)}
    assert {"beta", "max_length", "remove_unused_columns"} <= names
    taken = set(inspect.signature(trainer.__init__).parameters)
    assert {"args", "train_dataset", "eval_dataset", "processing_class", "peft_config"} <= taken


def test_a_trainer_that_has_moved_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experimental, "ORPO_MODULE", "trl.experimental.moved")
    with pytest.raises(TrainingError, match=r"has no ORPOConfig and ORPOTrainer in trl\.exp.*pip"):
        experimental.load_orpo()
