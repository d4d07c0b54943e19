"""Where the steps of a request run whose model's methods share the event loop."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.support.sample_models import Base, spec_of
from tests.support.servers import serve_asgi
from truthgpt_serve.server import create_app

TOOL = {"type": "function", "function": {"name": "add"}}
CALL = {"id": "c", "type": "function", "function": {"name": "add", "arguments": "{}"}}
USER: dict[str, Any] = {"role": "user", "content": "x"}
CALLS = {"role": "assistant", "content": None, "tool_calls": [CALL] * 17}
RESULT = {"role": "tool", "tool_call_id": "c", "content": "x"}


class Template:
    """Renders lines of JSON's kind, and notes the threads."""

    def __init__(self) -> None:
        self.threads: list[str] = []

    def apply_chat_template(self, messages: list[Any], **options: Any) -> str:
        if not options.get("tools") and messages[0] in (USER, {**USER, "content": "x" * 70_000}):
            self.threads.append(threading.current_thread().name)
        return f"{messages}{options.get('tools')}"


class OnLoop(Base):
    tokenizer: Any = None

    def load(self, cfg: dict[str, Any]) -> None:
        self.tokenizer = Template()
        self.thread = threading.current_thread().name

    async def infer(self, inputs: dict[str, Any]) -> dict[str, Any]:
        self.events.append(threading.current_thread().name)
        return {"text": "y"}

    async def stream(self, inputs: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        yield await self.infer(inputs)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("messages", "is_long"),
    [
        ([USER], False),
        ([USER] * 17, True),
        ([{**USER, "content": "x" * 70_000}], True),
        ([USER, CALLS, RESULT], True),
    ],
)
def test_a_long_chat_is_rendered_beside_the_event_loop(
    messages: list[Any], is_long: bool, stream: bool
) -> None:
    spec = dataclasses.replace(spec_of(OnLoop), on_event_loop=True)
    body = {"model": "sample", "messages": messages, "stream": stream}
    with serve_asgi(create_app(spec, {}, name="sample"), lifespan="on") as url:
        answer = httpx.post(f"{url}/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
    model = OnLoop.last
    threads = set(model.tokenizer.threads)
    assert len(threads) == 1
    assert threads.isdisjoint(model.events) == is_long
