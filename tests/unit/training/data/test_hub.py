from __future__ import annotations

import pytest

from truthgpt_serve.training.data.hub import choose_hub_split
from truthgpt_serve.training.errors import TrainingError


def test_splits_of_the_hub_have_the_same_names() -> None:
    assert choose_hub_split("x/y", ["test", "train"], "train") == "train"
    assert choose_hub_split("x/y", ["train", "test", "dev"], "validation") == "dev"
    assert choose_hub_split("x/y", ["train"], "validation") == "train"
    with pytest.raises(TrainingError, match="has no split to train on: it has test, validation"):
        choose_hub_split("x/y", ["test", "validation"], "train")
