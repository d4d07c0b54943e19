"""Services of the tests begin with the variables of the shell, not with those of libraries."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(scope="module")
def found() -> dict[str, str]:
    return dict(os.environ)


def test_a_library_sets_a_variable() -> None:
    os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
    os.environ["HF_HUB_OFFLINE"] = "0"


def test_the_next_test_does_not_see_it(found: dict[str, str]) -> None:
    assert "VLLM_LOGGING_LEVEL" not in found
    assert found["HF_HUB_OFFLINE"] != "0"
    assert "PYTEST_CURRENT_TEST" in found
