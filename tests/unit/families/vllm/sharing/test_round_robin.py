"""One item of each request, then the next one of each."""

from __future__ import annotations

import asyncio

from deployments.vllm.sharing.round_robin import RoundRobin, current_request, one_request


def test_requests_take_turns() -> None:
    line: RoundRobin[str] = RoundRobin()
    for item in ("a1", "a2", "a3", "b1", "c1", "c2"):
        line.push(item[0], item)
    found = []
    while line:
        following = line.peek()
        found.append(line.pop())
        assert found[-1] == following
    assert found == ["a1", "b1", "c1", "a2", "c2", "a3"]


async def test_tasks_of_one_request_are_of_it() -> None:
    async def ask() -> object:
        return current_request()

    with one_request():
        first = await asyncio.gather(ask(), asyncio.create_task(ask()))
    with one_request():
        second = await asyncio.create_task(ask())
    assert first[0] is first[1] is not None
    assert second not in (None, first[0])
    assert current_request() is None
