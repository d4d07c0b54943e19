"""What the table of frameworks calls an outcome, and when log likelihoods agree."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts.frameworks.__main__ import ANNOUNCED, judge
from scripts.frameworks.loglikelihoods import compare

CARD = {"json": True, "logprobs": False}


@pytest.mark.parametrize(
    ("outcome", "needs", "word"),
    [
        ("passed", [], "passed"),
        ("passed", ["logprobs"], "passed"),
        ("refused", ["logprobs"], ANNOUNCED),
        ("unbound", ["json", "logprobs"], ANNOUNCED),
        ("failed", ["logprobs"], "failed"),
        ("refused", ["json"], "failed"),
        ("refused", ["unknown"], ANNOUNCED),
        ("refused", [], "failed"),
        ("unbound", ["json"], "failed"),
    ],
)
def test_outcomes(outcome: str, needs: list[str], word: str) -> None:
    assert judge({"outcome": outcome, "needs": needs}, CARD) == word


def test_log_likelihoods(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for family, values in (("a", [-1.0, -2.0]), ("b", [-1.0005, -2.0]), ("c", [-1.0, -2.1])):
        (tmp_path / f"lm-eval.{family}.json").write_text(json.dumps(values))
    assert compare(tmp_path, ["a", "b", "none"]) == []
    [fault] = compare(tmp_path, ["a", "b", "c"])
    assert fault.startswith("log likelihoods of c and a: 2, apart 0.1 at most, more than")
    assert "of b and a: 2, apart 0.0005 at most" in capsys.readouterr().out
