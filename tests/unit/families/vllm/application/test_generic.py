"""The inputs of the contract over vLLM's own routes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from deployments.vllm.application.generic import create_backend
from truthgpt_serve.errors import RequestError
from truthgpt_serve.http.caller import Caller


async def answer_in_pieces(scope: Any, receive: Any, send: Any) -> None:
    body = json.loads((await receive())["body"])
    await send({"type": "http.response.start", "status": 200, "headers": []})
    # A cut in the middle of an event, and of a character.
    text = "".join(
        f"data: {json.dumps({'choices': [{'text': part, 'finish_reason': None}]})}\n\n"
        for part in (body["prompt"], "é", "end")
    )
    data = f"{text}data: [DONE]\n\n".encode()
    for start in range(0, len(data), 7):
        piece = data[start : start + 7]
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body"})


async def test_stream_is_put_together_from_any_pieces() -> None:
    backend = create_backend(answer_in_pieces, "m", ("generate",))
    deltas = [delta["text"] async for delta in backend.stream({"text": "start"}, Caller("id"))]
    assert deltas == ["start", "é", "end"]


async def test_text_is_required() -> None:
    with pytest.raises(RequestError, match=r"inputs\.text"):
        await create_backend(answer_in_pieces, "m", ("generate",)).infer({}, Caller("id"))
