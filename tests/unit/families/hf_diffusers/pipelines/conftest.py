"""What several modules of these tests share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support.image_models import save_model


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hides a GPU that this machine may have."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model("sdxl", tmp_path_factory.mktemp("sdxl"))


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model("flux", tmp_path_factory.mktemp("flux"))
