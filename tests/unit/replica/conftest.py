"""Keeps what a replica changes for its whole process from the tests after it."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _own_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("truthgpt_serve.replica.classes.mend_lines", lambda: None)
