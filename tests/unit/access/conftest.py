"""Fixtures for the tests of keys."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator

import pytest

from truthgpt_serve.access.key_ring import KeyRing


@pytest.fixture(scope="package", autouse=True)
def counters_of_these_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Puts the counters of keys, which outlive their processes, where pytest cleans up."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("counters")))
        yield


@pytest.fixture
def rings() -> Iterator[list[KeyRing]]:
    """Rings of keys that are closed at the end."""
    made: list[KeyRing] = []
    yield made
    for ring in made:
        ring.close()
