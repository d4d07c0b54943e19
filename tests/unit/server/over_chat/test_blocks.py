"""Chat answers of several kinds of parts, as the clients of the other APIs put them together."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import anthropic
import openai
import pytest

from tests.support.servers import serve_asgi
from truthgpt_serve.http.asgi import Receive, Scope, Send
from truthgpt_serve.http.connection import Connection
from truthgpt_serve.server.over_chat.routes import OverChat

USAGE = {
    "prompt_tokens": 9,
    "completion_tokens": 5,
    "total_tokens": 14,
    "prompt_tokens_details": {"cached_tokens": 4},
}


def call(index: int, **fields: Any) -> dict[str, Any]:
    return {"tool_calls": [{"index": index, **fields}]}


def begin(index: int) -> dict[str, Any]:
    function = {"name": f"f{index}", "arguments": ""}
    return call(index, id=f"c{index}", type="function", function=function)


DELTAS = [
    {"role": "assistant", "content": ""},
    {"reasoning_content": "hm"},
    {"reasoning_content": "m"},
    {"content": "Let "},
    {"content": "me."},
    begin(0),
    call(0, function={"arguments": '{"a":'}),
    call(0, function={"arguments": "1}"}),
    begin(1),
    call(1, function={"arguments": "{}"}),
]
"""As vLLM and OpenAI stream them."""


def chunk(delta: dict[str, Any], reason: str | None = None, **fields: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    return {"id": "x", "model": "m", "choices": [choice], **fields}


CHUNKS = [
    *map(chunk, DELTAS),
    chunk({}, "tool_calls"),
    {"id": "x", "model": "m", "choices": [], "usage": USAGE},
]
CALLS = [
    {"id": "c0", "type": "function", "function": {"name": "f0", "arguments": '{"a":1}'}},
    {"id": "c1", "type": "function", "function": {"name": "f1", "arguments": "{}"}},
]
MESSAGE = {"role": "assistant", "reasoning": "hmm", "content": "Let me.", "tool_calls": CALLS}
WHOLE = {
    "model": "m",
    "choices": [{"index": 0, "message": MESSAGE, "finish_reason": "tool_calls"}],
    "usage": USAGE,
}
"""The same answer as one, with the other name of reasoning."""


class Recorded:
    """An application whose chat route answers what engines with reasoning and tools answer."""

    def __init__(self, chunks: list[dict[str, Any]] = CHUNKS, *, ends: bool = True) -> None:
        self._chunks = chunks
        self._ends = ends
        self._over_chat = OverChat(self, lambda c: c.read(10**6), lambda *_: None, "m")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        connection = Connection(scope, receive, send)
        if connection.path != "/v1/chat/completions":
            await self._over_chat.answer(connection)
        elif not json.loads(await connection.read(10**6)).get("stream"):
            await connection.reply(json.dumps(WHOLE).encode())
        else:
            for value in self._chunks:
                data = b"data: " + json.dumps(value).encode() + b"\n\n"
                await connection.emit(data[:20])
                await asyncio.sleep(0)
                await connection.emit(data[20:])
            if self._ends:
                await connection.emit(b"data: [DONE]\n\n")
            await connection.end_events()


@pytest.mark.parametrize("stream", [False, True])
def test_a_message_of_many_blocks(stream: bool) -> None:
    fields: Any = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "a"}]}
    with serve_asgi(Recorded()) as url, anthropic.Anthropic(base_url=url, api_key="k") as client:
        if stream:
            with client.messages.stream(**fields) as events:
                answer: Any = events.get_final_message()
        else:
            answer = client.messages.create(**fields)
    thought, text, first, second = answer.content
    assert (thought.type, thought.thinking) == ("thinking", "hmm")
    assert (text.type, text.text) == ("text", "Let me.")
    assert (first.type, first.id, first.name, first.input) == ("tool_use", "c0", "f0", {"a": 1})
    assert (second.id, second.name, second.input) == ("c1", "f1", {})
    assert answer.stop_reason == "tool_use"
    usage = answer.usage
    counts = (usage.input_tokens, usage.cache_read_input_tokens, usage.output_tokens)
    assert counts == (5, 4, 5)


@pytest.mark.parametrize("stream", [False, True])
def test_a_response_of_many_items(stream: bool) -> None:
    with serve_asgi(Recorded()) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="k")
        if stream:
            with client, client.responses.stream(model="m", input="a") as events:
                kinds = [event.type for event in events]
                answer: Any = events.get_final_response()
            assert kinds.count("response.function_call_arguments.delta") == 3
            assert kinds.count("response.function_call_arguments.done") == 2
            assert kinds.count("response.reasoning_text.delta") == 2
        else:
            with client:
                answer = client.responses.create(model="m", input="a")
    thought, text, first, second = answer.output
    assert (thought.type, thought.content[0].text) == ("reasoning", "hmm")
    assert (text.type, answer.output_text, text.status) == ("message", "Let me.", "completed")
    assert (first.type, first.call_id, first.arguments) == ("function_call", "c0", '{"a":1}')
    assert (second.name, second.arguments) == ("f1", "{}")
    assert answer.status == "completed"
    assert answer.usage.input_tokens_details.cached_tokens == 4
    assert len({item.id for item in answer.output}) == 4


def test_a_stream_without_done_is_whole_once_it_said_why_it_ended() -> None:
    fields: Any = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "a"}]}
    for chunks, whole in ((CHUNKS, True), (CHUNKS[:4], False)):
        app = Recorded(chunks, ends=False)
        with (
            serve_asgi(app) as url,
            anthropic.Anthropic(base_url=url, api_key="k") as client,
            client.messages.stream(**fields) as events,
        ):
            if whole:
                assert events.get_final_message().stop_reason == "tool_use"
                continue
            with pytest.raises(anthropic.APIStatusError, match="ended before it was whole"):
                events.get_final_message()


def test_chunks_that_cannot_be_read() -> None:
    app = Recorded([chunk({"content": "a"}), {"choices": 5}])
    with serve_asgi(app) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="k")
        with client, pytest.raises(openai.APIError, match="cannot be read"):
            list(client.responses.create(model="m", input="a", stream=True))
