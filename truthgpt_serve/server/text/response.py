"""OpenAI's text answers as bytes, everything that does not change encoded once for each request.

Shapes: `chat.completion`, `chat.completion.chunk` and `text_completion` of OpenAI's API reference.
"""

from __future__ import annotations

import copy
import os
import time
from typing import Any

from truthgpt_serve.http.json_body import encode_json
from truthgpt_serve.http.sse import DONE_EVENT, format_event

Usage = dict[str, int]


class AnswerFormat:
    """Encodes one answer, whole or in chunks.

    Args:
        model: The model name of the request.
        chat: Chat completions, else completions.
        include_usage: Whether a stream ends with a chunk of token counts.
        index: The choice's number.
    """

    def __init__(
        self, model: str, *, chat: bool, include_usage: bool = False, index: int = 0
    ) -> None:
        self._chat = chat
        self._include_usage = include_usage
        self._index = index
        self._head: dict[str, Any] = {
            "id": ("chatcmpl-" if chat else "cmpl-") + os.urandom(16).hex(),
            "object": "chat.completion" if chat else "text_completion",
            "created": int(time.time()),
            "model": model,
        }

    def numbered(self, index: int) -> AnswerFormat:
        """Returns the format of another choice of the same answer."""
        other = copy.copy(self)
        other._index = index
        return other

    def choice(
        self, text: str, finish_reason: str, logprobs: Any, stop: str | None = None
    ) -> dict[str, Any]:
        """Returns one choice of an answer that is not streamed.

        Args:
            text: The text.
            finish_reason: Why it ended.
            logprobs: Its log probabilities, or None.
            stop: The stop string that ended it, as `stop_reason`, which vLLM has beside OpenAI's.
        """
        choice: dict[str, Any] = {"index": self._index}
        if self._chat:
            choice["message"] = {"role": "assistant", "content": text, "refusal": None}
        else:
            choice["text"] = text
        choice |= {"logprobs": logprobs, "finish_reason": finish_reason}
        return choice if stop is None else {**choice, "stop_reason": stop}

    def body(self, choices: list[dict[str, Any]], usage: Usage | None) -> bytes:
        """Returns the body of an answer that is not streamed."""
        body: dict[str, Any] = {**self._head, "choices": choices}
        if usage is not None:
            body["usage"] = usage
        return encode_json(body)

    def chunk(self, text: str, logprobs: Any) -> bytes:
        """Returns a chunk with log probabilities."""
        choice: dict[str, Any] = {"index": self._index}
        choice |= {"delta": {"content": text}} if self._chat else {"text": text}
        choice |= {"logprobs": logprobs, "finish_reason": None}
        body: dict[str, Any] = {**self._chunk_head(), "choices": [choice]}
        if self._include_usage:
            body["usage"] = None
        return format_event(encode_json(body))

    def delta(self, delta: dict[str, Any], logprobs: Any = None) -> bytes:
        """Returns a chunk of a chat with any delta."""
        choice = {"index": self._index, "delta": delta, "logprobs": logprobs}
        body: dict[str, Any] = {**self._chunk_head(), "choices": [choice | {"finish_reason": None}]}
        if self._include_usage:
            body["usage"] = None
        return format_event(encode_json(body))

    def frame(self) -> tuple[bytes, bytes]:
        """Returns what stands before and behind the encoded delta in every chunk."""
        return self._frame(b"null", b'{"content":')

    def first(self) -> bytes:
        """Returns the chunk in front of the first delta: the role, for chat."""
        if not self._chat:
            return b""
        before, behind = self._frame(b"null", b'{"role":"assistant","content":')
        return before + b'""' + behind

    def last(self, finish_reason: str, stop: str | None = None) -> bytes:
        """Returns the chunk behind the last delta; arguments as for `choice`."""
        reason = encode_json(finish_reason)
        if stop is not None:
            reason += b',"stop_reason":' + encode_json(stop)
        before, behind = self._frame(reason, b'{"content":')
        if self._chat:
            before = before.removesuffix(b'{"content":') + b"{"
            chunk = before + behind
        else:
            chunk = before + b'""' + behind
        return chunk

    def end(self, usage: Usage | None) -> bytes:
        """Returns what ends a stream: the chunk of token counts, if it is wanted, and `[DONE]`."""
        if not self._include_usage or usage is None:
            return DONE_EVENT
        body = {**self._chunk_head(), "choices": [], "usage": usage}
        return format_event(encode_json(body)) + DONE_EVENT

    def _chunk_head(self) -> dict[str, Any]:
        if self._chat:
            return {**self._head, "object": "chat.completion.chunk"}
        return self._head

    def _frame(self, finish_reason: bytes, delta: bytes) -> tuple[bytes, bytes]:
        head = encode_json(self._chunk_head())[:-1]
        before = b"data: " + head + b',"choices":[{"index":%d,' % self._index
        before += b'"delta":' + delta if self._chat else b'"text":'
        behind = b"}" if self._chat else b""
        behind += b',"logprobs":null,"finish_reason":' + finish_reason + b"}]"
        behind += b',"usage":null}\n\n' if self._include_usage else b"}\n\n"
        return before, behind
