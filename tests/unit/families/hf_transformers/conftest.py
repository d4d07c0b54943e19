"""What several modules of these tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.tiny_transformers.models import make_tiny_encoder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the folder of a tiny encoder."""
    return make_tiny_encoder(tmp_path_factory.mktemp("encoder"))
