"""One item of each request, then the next one of each."""

from __future__ import annotations

import asyncio

from deployments.vllm.sharing.round_robin import (
    FairLine,
    RoundRobin,
    current_request,
    one_request,
)
from truthgpt_serve.usage.shares import Owner


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


def test_keys_share_and_each_has_its_requests_take_turns() -> None:
    line: FairLine[str] = FairLine()
    many, few, urgent = Owner("many"), Owner("few", weight=2), Owner("urgent", priority=1)
    for item in ("m1", "m1", "m1", "m2", "m3"):
        line.push(many, item, item)
    for item in ("f1", "f1", "f2", "f2"):
        line.push(few, item, item)
    line.push(urgent, "u1", "u1")
    found = []
    while line:
        following = line.peek()
        found.append(line.pop(1))
        assert found[-1] == following
    assert found[0] == "u1"
    assert [item for item in found if item[0] == "m"] == ["m1", "m2", "m3", "m1", "m1"]
    assert [item for item in found if item[0] == "f"] == ["f1", "f2", "f1", "f2"]
    assert found[1:7].count("f1") + found[1:7].count("f2") == 4


def test_what_is_no_longer_wanted_takes_nothing() -> None:
    line: FairLine[str] = FairLine()
    for key in ("gone", "other"):
        for at in range(4):
            line.push(Owner(key), at, key)
    found = [line.pop(0 if line.peek() == "gone" else 1) for _ in range(5)]
    assert found == ["gone"] * 4 + ["other"]
