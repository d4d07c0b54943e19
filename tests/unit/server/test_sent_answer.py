"""An answer is known to have failed by its events, as its status does not say it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from truthgpt_serve.server.sent_answer import SentAnswer
from truthgpt_serve.usage.counted import Usage, counting

EVENTS = [(b"content-type", b"text/event-stream")]
WORD = b'data: {"choices":[{"text":"\\"error\\""}]}\n\n'
ERROR = b'data: {"error":{"message":"the engine died","code":500}}\n\n'
ANTHROPIC = b'event: error\ndata: {"type":"error","error":{"message":"it died"}}\n\n'
DONE = b"data: [DONE]\n\n"


async def send(pieces: Sequence[bytes], headers: Sequence[Any] = EVENTS) -> tuple[Usage, bytes]:
    sent = []

    async def note(message: Any) -> None:
        sent.append(message.get("body", b""))

    with counting(Usage()):
        answer = SentAnswer(note)
    usage = answer._usage
    assert usage is not None
    await answer.pass_on({"type": "http.response.start", "status": 200, "headers": headers})
    for at, piece in enumerate(pieces, 1):
        body = {"type": "http.response.body", "body": piece, "more_body": at < len(pieces)}
        await answer.pass_on(body)
    return usage, b"".join(sent)


@pytest.mark.parametrize(
    "pieces",
    [
        [WORD, ERROR],
        [WORD, ERROR, DONE],
        [WORD + ERROR + DONE, b""],
        [WORD, ANTHROPIC],
        [WORD, ERROR[:20], ERROR[20:] + DONE],
    ],
)
async def test_a_stream_with_an_error_breaks_off(pieces: list[bytes]) -> None:
    usage, sent = await send(pieces)
    assert usage.broke_off
    assert sent == b"".join(pieces)


@pytest.mark.parametrize(
    "event",
    [
        WORD,
        b'data: {"type":"response.created","response":{"error":null},"error":null}\n\n',
        b'data: {"model":"m","outputs":{"error":"of the model\'s own"}}\n\n',
        b'data: {"choices":[],"error":"of the model\'s own"}\n\n',
        b'data: "error"\n\n',
    ],
)
async def test_what_only_has_the_word_does_not(event: bytes) -> None:
    usage, _ = await send([event, DONE])
    assert not usage.broke_off


async def test_an_answer_that_is_no_stream_has_its_status() -> None:
    usage, _ = await send([ERROR], [(b"content-type", b"application/json")])
    assert (usage.status, usage.broke_off) == (200, False)
