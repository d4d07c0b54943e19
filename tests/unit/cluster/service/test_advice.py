"""Causes of a failed start, and what helps."""

from __future__ import annotations

from truthgpt_serve.cluster.service.advice import find_advice, find_cause, find_full_disk


def test_no_cause() -> None:
    assert find_cause([]) == []
    assert find_cause(["all", "is well"]) == ["all", "is well"]
    assert find_advice(["all is well"]) is None


def test_what_ray_only_guesses_is_no_advice() -> None:
    guess = "\t(1) raylet crashes unexpectedly (OOM, etc.)"
    assert find_advice([guess]) is None
    for killed in (
        "SIGKILL by the user or system OOM killer",
        "killed by SIGKILL by OOM killer",
        "the process was killed by the OOM killer due to high memory usage",
        "If the process was killed by the kernel OOM killer (verifiable by",
    ):
        assert find_advice([f"Possible reasons include: (1) {killed}"]) is None
    assert "too little memory" in str(find_advice([guess, "OOMKilled"]))


def test_where_a_disk_is_full() -> None:
    advice = "the disk is full: free some space; `df -h` shows"
    full = "No space left on device"
    ray = f"[ray_log_sink] Failed flush to file /m/ray/logs/core_51.log: {full}"
    assert find_full_disk([ray, "and so on"]) == f"/m/ray/logs/core_51.log: {advice}"
    python = f"OSError: [Errno 28] {full}: '/m/tmp/x'"
    assert find_full_disk([python]) == find_advice([python]) == f"/m/tmp/x: {advice}"
    assert find_advice([python, "OOMKilled"]) == f"/m/tmp/x: {advice}"
    assert find_full_disk([full]) == find_advice([full]) == advice
    assert find_full_disk(["all is well"]) is None
