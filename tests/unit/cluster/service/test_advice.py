"""Causes of a failed start, and what helps."""

from __future__ import annotations

from truthgpt_serve.cluster.service.advice import find_advice, find_cause


def test_no_cause() -> None:
    assert find_cause([]) == []
    assert find_cause(["all", "is well"]) == ["all", "is well"]
    assert find_advice(["all is well"]) is None


def test_what_ray_only_guesses_is_no_advice() -> None:
    guess = "\t(1) raylet crashes unexpectedly (OOM, etc.)"
    assert find_advice([guess]) is None
    for killed in ("SIGKILL by the user or system OOM killer", "killed by SIGKILL by OOM killer"):
        assert find_advice([f"Possible reasons include: (1) {killed}"]) is None
    assert "too little memory" in str(find_advice([guess, "OOMKilled"]))
