"""A chat answer as one of Anthropic's Messages API, whole or as its events."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from typing import Any

import msgspec
from pydantic_core import from_json

from truthgpt_serve.http.json_body import encode_json
from truthgpt_serve.http.sse import format_event
from truthgpt_serve.server.over_chat.blocks import Block, Blocks, Step

_REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "refusal",
}
_OPENED: dict[str, dict[str, Any]] = {
    "text": {"type": "text", "text": ""},
    "reasoning": {"type": "thinking", "thinking": "", "signature": ""},
}
_DELTAS = {
    "text": ("text_delta", "text"),
    "reasoning": ("thinking_delta", "thinking"),
    "call": ("input_json_delta", "partial_json"),
}


class MessagesAnswer:
    """Makes one message."""

    def __init__(self) -> None:
        self._id = f"msg_{os.urandom(12).hex()}"
        self._blocks = Blocks()
        self._started = False

    @property
    def ended(self) -> bool:
        """Whether the chat answer has said why it ended."""
        return self._blocks.ended

    def whole(self, answer: Mapping[str, Any]) -> bytes:
        """Returns the message."""
        self._blocks.take_whole(answer)
        content = [_content(block) for block in self._blocks.blocks]
        return encode_json({**self._message(content), **self._stop(), "usage": self._usage()})

    def feed(self, chunk: Mapping[str, Any]) -> bytes:
        """Returns the events for a chunk."""
        steps = list(self._blocks.take(chunk))
        out = b""
        if not self._started:
            self._started = True
            usage = {"input_tokens": 0, "output_tokens": 0}
            stop = {"stop_reason": None, "stop_sequence": None}
            message = {**self._message([]), **stop, "usage": usage}
            out = _event("message_start", message=message)
        return out + b"".join(map(_events, steps))

    def finish(self) -> bytes:
        """Returns the last events, with the counts of tokens."""
        out = b"".join(map(_events, self._blocks.fill()))
        out += _event("message_delta", delta=self._stop(), usage=self._usage())
        return out + _event("message_stop")

    def _message(self, content: list[dict[str, Any]]) -> dict[str, Any]:
        head = {"id": self._id, "type": "message", "role": "assistant"}
        return {**head, "model": self._blocks.model, "content": content}

    def _stop(self) -> dict[str, Any]:
        blocks = self._blocks
        reason = _REASONS.get(blocks.finish_reason or "", "end_turn")
        if blocks.stop is not None and reason == "end_turn":
            return {"stop_reason": "stop_sequence", "stop_sequence": blocks.stop}
        return {"stop_reason": reason, "stop_sequence": None}

    def _usage(self) -> dict[str, int]:
        blocks = self._blocks
        cached = blocks.detail("prompt_tokens_details", "cached_tokens")
        return {
            "input_tokens": max(0, blocks.count("prompt_tokens") - cached),
            "cache_read_input_tokens": cached,
            "output_tokens": blocks.count("completion_tokens"),
        }


def _content(block: Block) -> dict[str, Any]:
    if block.kind == "text":
        return {"type": "text", "text": block.text}
    if block.kind == "reasoning":
        return {"type": "thinking", "thinking": block.text, "signature": ""}
    return {"type": "tool_use", "id": block.call_id, "name": block.name, "input": _input(block)}


def _input(block: Block) -> dict[str, Any]:
    """Returns the arguments of a call as an object; what is none is kept as a text in one.

    Of a cut call it is what Anthropic's clients make of its events.
    """
    for read in (msgspec.json.decode, _read_cut):
        try:
            value = read(block.text or "{}")
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            return value
    return {"arguments": block.text}


_read_cut = partial(from_json, allow_partial=True)


def _events(step: Step) -> bytes:
    block = step.block
    if step.kind == "open":
        opened = _OPENED.get(block.kind)
        if opened is None:
            head = {"type": "tool_use", "id": block.call_id, "name": block.name}
            opened = {**head, "input": {}}
        return _event("content_block_start", index=block.index, content_block=opened)
    if step.kind == "delta":
        kind, name = _DELTAS[block.kind]
        delta = {"type": kind, name: step.delta}
        return _event("content_block_delta", index=block.index, delta=delta)
    return _event("content_block_stop", index=block.index)


def _event(name: str, **fields: Any) -> bytes:
    return format_event(encode_json({"type": name, **fields}), name)


class CountAnswer:
    """Makes the answer of `count_tokens` from that of `/tokenize`."""

    ended = True

    def whole(self, answer: Mapping[str, Any]) -> bytes:
        """Returns the count."""
        return encode_json({"input_tokens": int(answer["count"])})

    def feed(self, chunk: Mapping[str, Any]) -> bytes:
        """Refuses: a count is no stream."""
        raise ValueError("a count came as a stream")

    def finish(self) -> bytes:
        """Returns nothing."""
        return b""
