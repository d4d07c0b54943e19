"""What the playground keeps for pages that do not read, with Gradio's own queue."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Callable
from typing import Any

import pytest

if importlib.util.find_spec("gradio") is None:
    pytest.skip("the extra `ui` is not installed", allow_module_level=True)

import gradio as gr
from gradio.data_classes import PredictBodyInternal
from gradio.server_messages import ProcessGeneratingMessage

from truthgpt_serve.playground import running as running_module
from truthgpt_serve.playground import sessions as limits
from truthgpt_serve.playground.running import Running
from truthgpt_serve.playground.sessions import Sessions


class App:
    """Where Gradio's application has its states."""

    state_holder: Any = None


@pytest.fixture
async def kept() -> tuple[Sessions, Any, list[str]]:
    with gr.Blocks(analytics_enabled=False) as pages:
        text = gr.Textbox()
        text.change(lambda value: value, text, text)
    pages.queue()
    lost: list[str] = []
    return Sessions(App(), pages, 2, lost.append), pages._queue, lost


async def push(queue: Any, session: str) -> Any:
    body = PredictBodyInternal(data=["x"], fn_index=0, session_hash=session)
    done, event_id, _ = await queue.push(body, None, None)
    assert done
    return queue.event_ids_to_events[event_id]


def say(queue: Any, event: Any, letters: int) -> None:
    output = {"data": ["x" * letters]}
    queue.send_message(event, ProcessGeneratingMessage(output=output, success=True))


async def test_what_is_not_read_is_thrown_away(kept: tuple[Sessions, Any, list[str]]) -> None:
    sessions, queue, lost = kept
    deaf, other = await push(queue, "deaf"), await push(queue, "other")
    say(queue, other, 10)
    for _ in range(40):
        say(queue, deaf, 1 << 20)
    assert lost == ["deaf"]
    assert sessions.num_unread("deaf") == 0
    assert 1000 <= sessions.num_unread("other") < 10_000
    assert not deaf.alive
    assert other.alive
    queue.broadcast_estimations(other.concurrency_id)  # which tells all who wait
    while not (messages := queue.pending_messages_per_session["other"]).empty():
        await messages.get()
    assert sessions.num_unread("other") == 0


async def test_all_pages_together_are_bounded(kept: tuple[Sessions, Any, list[str]]) -> None:
    sessions, queue, lost = kept
    small = await push(queue, "small")
    for at in range(12):
        event = await push(queue, f"s{at}")
        for _ in range(30):
            say(queue, event, 1 << 20)
        say(queue, small, 1 << 20)
    total = sum(sessions.num_unread(f"s{at}") for at in range(12))
    assert total <= limits.MAX_HELD_TOTAL
    assert lost
    assert small.alive  # those with the most unread go


async def test_pages_that_read_stay_when_there_are_too_many(
    kept: tuple[Sessions, Any, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, queue, lost = kept
    monkeypatch.setattr(limits, "MAX_PAGES", 3)
    reads = await push(queue, "reads")
    for at in range(5):
        while not (messages := queue.pending_messages_per_session["reads"]).empty():
            messages.get_nowait()
        await push(queue, f"s{at}")
        assert len(queue.pending_messages_per_session) <= 3
    assert reads.alive
    assert lost == ["s0", "s1", "s2"]


async def test_work_ends_for_a_page_that_does_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running_module, "READ_S", 0.2)
    running, updates, ended = Running(), 0, False
    running.num_unread = lambda session: updates * (3 << 20)

    async def work(changed: Callable[[], None]) -> None:
        nonlocal ended
        try:
            while True:
                changed()
                await asyncio.sleep(0.01)
        finally:
            ended = True

    async with asyncio.timeout(30):
        async for _ in running.follow("deaf", "chat", work):
            updates += 1
    assert ended
    assert updates <= 4


async def test_a_state_keeps_no_values(kept: tuple[Sessions, Any, list[str]]) -> None:
    _, queue, _ = kept
    holder = queue.blocks.state_holder
    for at in range(5):
        state = holder[f"s{at}"]
        (block,) = (one for one in queue.blocks.blocks.values() if isinstance(one, gr.Textbox))
        state._update_value_in_config(block._id, "x" * 1000)
        assert list(state.components) == []
        assert block._id in state
    assert list(holder.session_data) == ["s3", "s4"]
