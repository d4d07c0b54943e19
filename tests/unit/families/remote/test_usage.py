"""Reads what an answer cost, in the forms of all APIs, and asks for it where it is not said."""

from __future__ import annotations

import json
from typing import Any

import pytest

from deployments.remote.usage import MAX_READ_BYTES, UsageReader, about_prompt, ask_for_usage
from truthgpt_serve.usage.counted import Usage

CHAT = "/v1/chat/completions"


def event(**fields: Any) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def read(*pieces: bytes, hides: bool = False) -> tuple[Usage, bytes]:
    usage = Usage()
    reader = UsageReader(usage, hides=hides)
    passed = b"".join(reader.events(piece) for piece in pieces)
    usage.finish()
    return usage, passed


def read_body(*pieces: bytes) -> Usage:
    usage = Usage()
    reader = UsageReader(usage, hides=False)
    for index, piece in enumerate(pieces):
        reader.piece(piece, more=index + 1 < len(pieces))
    usage.finish()
    return usage


@pytest.mark.parametrize(
    "body",
    [
        {"stream": False},
        {"stream": True, "stream_options": {"include_usage": True}},
        {"stream": True, "stream_options": 5},
        {"stream": True, "stream_options": {"continuous_usage_stats": False}},
        {"stream": "true"},
        [{"stream": True}],
    ],
)
def test_requests_that_stay_as_they_are(body: Any) -> None:
    assert ask_for_usage(CHAT, json.dumps(body).encode()) is None


def test_requests_that_are_not_read() -> None:
    body = b'{"stream": true}'
    assert ask_for_usage("/v1/embeddings", body) is None
    assert ask_for_usage(CHAT, b'{"stream": true') is None
    assert ask_for_usage(CHAT, body + b" " * MAX_READ_BYTES) is None
    assert ask_for_usage(CHAT, b'{"stream": true, "a": ' + b"[" * 100_000) is None


def test_a_stream_is_asked_for_its_tokens() -> None:
    body = b'{"stream" :true, "seed": 1.0, "x": "}" } \n'
    assert ask_for_usage(CHAT, body) == (
        b'{"stream" :true, "seed": 1.0, "x": "}" ,"stream_options":{"include_usage":true}} \n'
    )


def test_the_last_chunk_is_taken_out_if_nobody_asked_for_it() -> None:
    text = event(choices=[{"text": "a"}], usage=None)
    details = {"cached_tokens": 4}
    usage = {"prompt_tokens": 7, "completion_tokens": 2, "prompt_tokens_details": details}
    last, done = event(choices=[], usage=usage), b"data: [DONE]\n\n"
    found, passed = read(text + text, last + done, hides=True)
    assert passed == text + text + done
    assert (found.prompt_tokens, found.cached_tokens, found.completion_tokens) == (7, 4, 2)
    found, passed = read(text + last, done)
    assert passed == text + last + done
    assert found.completion_tokens == 2


def test_streams_of_other_apis() -> None:
    found, _ = read(
        event(type="message_start", message={"usage": {"input_tokens": 9, "output_tokens": 1}}),
        event(type="content_block_delta", delta={"text": "usage"}),
        event(type="message_delta", usage={"output_tokens": 5}),
    )
    assert (found.prompt_tokens, found.completion_tokens) == (9, 5)
    response = {"usage": {"input_tokens": 3, "output_tokens": 8}}
    found, _ = read(event(type="response.completed", response=response))
    assert (found.prompt_tokens, found.completion_tokens) == (3, 8)


def test_a_stream_without_tokens_counts_its_events() -> None:
    text = event(choices=[{"text": "a"}])
    assert read(text * 3, text + b"data: [DONE]\n\n")[0].completion_tokens == 4


def test_an_answer_that_its_client_does_not_wait_for() -> None:
    body = json.dumps({"prompt": "x" * 400}).encode()
    about = about_prompt(CHAT, body)
    assert about == len(body) // 4
    assert about_prompt("/v1/audio/transcriptions", body) == 0
    image = {"url": "data:image/png;base64," + "iVBORw0KGgo" * 400_000}
    assert about_prompt(CHAT, json.dumps({"prompt": "x" * 400, "image": image}).encode()) < 150
    usage = Usage()
    reader = UsageReader(usage, hides=True, about=about)
    reader.events(event(choices=[{"text": "a"}]) * 3)
    usage.finish()
    assert usage == Usage(prompt_tokens=about, completion_tokens=2)


@pytest.mark.parametrize(
    ("answer", "num_tokens"),
    [
        ({"choices": [{"text": "x" * 40}, {"message": {"content": "x" * 40}}]}, 20),
        ({"content": [{"type": "text", "text": "x" * 40}]}, 10),
        ({"output": [{"content": [{"text": "x" * 40, "annotations": []}]}]}, 10),
        ({"choices": [{"text": "x" * 40}], "usage": {"prompt_tokens": 3}}, 0),
        ({"choices": [{"text": "x" * 100_000}]}, 25_006),
        ([], 0),
    ],
)
def test_a_whole_answer_that_does_not_say_its_tokens(answer: Any, num_tokens: int) -> None:
    """Its prompt counts as that of one whose client left, and its text likewise."""
    usage = Usage()
    reader = UsageReader(usage, hides=False, about=50, is_text=True)
    reader.piece(json.dumps(answer).encode(), more=False)
    usage.finish()
    is_told = "usage" in answer
    assert usage == Usage(prompt_tokens=3 if is_told else 50, completion_tokens=num_tokens)


def test_whole_answers() -> None:
    body = json.dumps({"usage": {"prompt_tokens": 5, "completion_tokens": 6}}).encode()
    assert read_body(body).completion_tokens == 6
    assert read_body(body[:10], body[10:], b"").prompt_tokens == 5
    for odd in (b"", b"[]", b"{", b'{"usage": 5}', b'{"usage": {"prompt_tokens": -3}}'):
        assert read_body(odd) == Usage()
    assert read_body(body[:-1] + b" " * MAX_READ_BYTES + b"}") == Usage()
    long = b'{"data": "' + b"usage" * 20_000 + b'", ' + body[1:]
    assert read_body(long[:70_000], long[70_000:]).prompt_tokens == 5
    assert read_body(long[:-1] + b', "x": "' + b'"usage":{' * 9000 + b'"}') == Usage()
