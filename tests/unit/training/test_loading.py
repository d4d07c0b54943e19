"""Imports of heavy modules: what is missing is named, and what is said meanwhile is not shown."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest

from truthgpt_serve.training.errors import TrainingError
from truthgpt_serve.training.loading import load_module


def test_a_missing_package_is_named_with_what_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "needs_more.py").write_text("import no_such_package_here\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    message = r"training needs the package 'no_such_package_here' .*truthgpt-serve\[train\]"
    with pytest.raises(TrainingError, match=message):
        load_module("needs_more", TrainingError, what="training", extras="train")
    with pytest.raises(ModuleNotFoundError):  # a fault of our own
        load_module("truthgpt_serve.none", TrainingError, what="training", extras="train")


def test_a_module_is_imported_and_noisy_loggers_are_quiet() -> None:
    module = load_module("json.tool", TrainingError, what="this", extras="train")
    assert module is sys.modules["json.tool"]
    assert not logging.getLogger("torchao").isEnabledFor(logging.WARNING)
