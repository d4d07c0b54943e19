"""What the collector does without Ray: with one it is in `tests/serve/test_keys.py`."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from truthgpt_serve.usage.batch import Batch, UsageQuery
from truthgpt_serve.usage.collector import (
    CollectorError,
    UsageCollector,
    UsageKeeper,
    open_recorder,
)
from truthgpt_serve.usage.counted import Usage

ALL = UsageQuery(0, 10**6, (), 1)
LIGHT = """
import sys
import truthgpt_serve.usage.collector
heavy = {"ray", "sqlite3", "pydantic", "yaml", "httpx", "truthgpt_serve.config"} & set(sys.modules)
assert not heavy, heavy
"""


def test_the_actor_says_what_is_wrong_in_words(tmp_path: Path) -> None:
    keeper = UsageKeeper(str(tmp_path / "keys.yaml"), None)
    batch = Batch("s", 1, [(500_000, "a", "m", 1, 0, 1, 0, 1, 0, 0.0, 0.0)])
    assert keeper.add(batch, keep_days=10**4) == ""
    assert keeper.query(ALL) == [[1, 0, 1, 0, 1, 0, 0.0, 0.0]]
    assert (tmp_path / "keys.usage.sqlite").exists()
    broken = UsageKeeper(str(tmp_path / "keys.yaml"), str(tmp_path))
    assert "cannot be used now" in broken.add(batch, keep_days=400)
    assert "cannot be used now" in str(broken.query(ALL))


def test_outside_a_cluster_nothing_is_started(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = threading.active_count()
    recorder = open_recorder(tmp_path / "keys.yaml")
    assert threading.active_count() == before
    recorder.add("a", "m", Usage(), False)
    recorder.close()
    assert "belongs to no Ray cluster" in caplog.text
    collector = UsageCollector("keys.yaml")
    for call in (collector.start, lambda: collector.query(ALL)):
        with pytest.raises(CollectorError, match="belongs to no Ray cluster"):
            call()


def test_its_imports_are_light() -> None:
    subprocess.run([sys.executable, "-c", LIGHT], check=True)
