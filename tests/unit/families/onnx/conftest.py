"""What several modules of these tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from deployments.onnx.tiny_model import make_tiny_vision
from tests.support.onnx_models import make_encoder


@pytest.fixture(scope="module")
def vision(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_vision(tmp_path_factory.mktemp("vision") / "model.onnx")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoder(tmp_path_factory.mktemp("encoder") / "model.onnx")
