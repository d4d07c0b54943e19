"""The memory of this machine, or of the container."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from truthgpt_serve.hardware import memory
from truthgpt_serve.hardware.memory import total_memory


def test_a_containers_limit_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "memory.max"
    monkeypatch.setattr(memory, "_LIMITS", (str(file), str(tmp_path / "missing")))
    assert total_memory() == psutil.virtual_memory().total
    file.write_text("max\n", encoding="utf-8")
    assert total_memory() == psutil.virtual_memory().total
    file.write_text("1048576\n", encoding="utf-8")
    assert total_memory() == 1048576
