"""The request that the chat page sends."""

from __future__ import annotations

import pytest

from truthgpt_serve.playground.client import ServiceFault
from truthgpt_serve.playground.pages.chat_request import MAX_CONVERSATION, MAX_MESSAGES, build_body


def test_a_conversation_is_bounded() -> None:
    options = [""] * 5
    said = {"role": "user", "content": "x" * MAX_CONVERSATION}
    assert build_body("m", [said], options)["messages"] == [said]
    with pytest.raises(ServiceFault, match="start a new one"):
        build_body("m", [said, said], options)
    short = {"role": "user", "content": "x"}
    with pytest.raises(ServiceFault, match="messages: start a new one"):
        build_body("m", [short] * (MAX_MESSAGES + 1), options)


def test_what_is_empty_is_not_sent() -> None:
    said = {"role": "user", "content": "hi"}
    body = build_body("m", [said], ["be kind", "0.5", "", " ", "7"])
    assert body["messages"] == [{"role": "system", "content": "be kind"}, said]
    assert {name for name in body if name not in ("model", "messages")} == {
        "temperature",
        "seed",
        "stream",
        "stream_options",
    }
