from __future__ import annotations

import threading

import pytest

from deployments.vllm.grammar.threads import GrammarThreads


def test_one_thread_at_most_works_on_a_grammar() -> None:
    running, most = [0], [0]
    gate = threading.Event()

    def compile_one(request: str) -> str:
        running[0] += 1
        most[0] = max(most[0], running[0])
        gate.wait(30)
        running[0] -= 1
        if request == "wrong":
            raise ValueError(request)
        return request

    threads = GrammarThreads(3, lambda request: request)
    try:
        same = [threads.submit(compile_one, "a") for _ in range(5)]
        wrong = [threads.submit(compile_one, "wrong") for _ in range(2)]
        other = threads.submit(lambda request: request, "b")
        assert other.result(30) == "b", "a thread is free for it"
        gate.set()
        assert [one.result(30) for one in same] == ["a"] * 5
        for one in wrong:
            with pytest.raises(ValueError, match="wrong"):
                one.result(30)
    finally:
        gate.set()
        threads.shutdown()
    assert most[0] == 2
