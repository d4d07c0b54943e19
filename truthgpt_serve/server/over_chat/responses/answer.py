"""A chat answer as one of OpenAI's Responses API, whole or as its events."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

from truthgpt_serve.http.json_body import encode_json
from truthgpt_serve.http.sse import format_event
from truthgpt_serve.server.over_chat.blocks import Block, Blocks, Step

_PREFIXES = {"text": "msg", "reasoning": "rs", "call": "fc"}
_REPEATED: dict[str, Any] = {
    "instructions": None,
    "max_output_tokens": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "reasoning": {"effort": None, "summary": None},
    "temperature": None,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_p": None,
    "truncation": "disabled",
    "user": None,
}
"""Fields of the request that the response repeats, and what it says without them."""
_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}


class ResponsesAnswer:
    """Makes one response.

    Args:
        body: The request.
    """

    def __init__(self, body: Mapping[str, Any]) -> None:
        self._random = os.urandom(12).hex()
        self._created = int(time.time())
        given = {name: body[name] for name in _REPEATED if body.get(name) is not None}
        self._repeated = {**_REPEATED, **given}
        self._blocks = Blocks()
        self._number = 0

    @property
    def ended(self) -> bool:
        """Whether the chat answer has said why it ended."""
        return self._blocks.ended

    def whole(self, answer: Mapping[str, Any]) -> bytes:
        """Returns the response."""
        self._blocks.take_whole(answer)
        return encode_json(self._last())

    def feed(self, chunk: Mapping[str, Any]) -> bytes:
        """Returns the events for a chunk."""
        steps = list(self._blocks.take(chunk))
        out = b""
        if not self._number:
            response = self._response("in_progress", [])
            out = self._event("response.created", response=response)
            out += self._event("response.in_progress", response=response)
        return out + b"".join(map(self._events, steps))

    def finish(self) -> bytes:
        """Returns the last events, with the whole response."""
        out = b"".join(map(self._events, self._blocks.fill()))
        response = self._last()
        return out + self._event(f"response.{response['status']}", response=response)

    # -- the response

    def _last(self) -> dict[str, Any]:
        reason = _INCOMPLETE.get(self._blocks.finish_reason or "")
        status = "completed" if reason is None else "incomplete"
        output = [self._item(block, status) for block in self._blocks.blocks]
        response = self._response(status, output)
        response["incomplete_details"] = None if reason is None else {"reason": reason}
        return {**response, "usage": self._usage()}

    def _response(self, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": f"resp_{self._random}",
            "object": "response",
            "created_at": self._created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "model": self._blocks.model,
            "output": output,
            "previous_response_id": None,
            "store": False,
            **self._repeated,
            "usage": None,
        }

    def _usage(self) -> dict[str, Any] | None:
        blocks = self._blocks
        if not blocks.usage:
            return None
        given, made = blocks.count("prompt_tokens"), blocks.count("completion_tokens")
        cached = blocks.detail("prompt_tokens_details", "cached_tokens")
        thought = blocks.detail("completion_tokens_details", "reasoning_tokens")
        return {
            "input_tokens": given,
            "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
            "output_tokens": made,
            "output_tokens_details": {"reasoning_tokens": thought},
            "total_tokens": given + made,
        }

    def _item(self, block: Block, status: str) -> dict[str, Any]:
        head = {"id": self._id(block), "status": status}
        if block.kind == "call":
            call = {"type": "function_call", "call_id": block.call_id, "name": block.name}
            return {**head, **call, "arguments": block.text}
        parts = [] if status == "in_progress" else [_part(block)]
        if block.kind == "reasoning":
            return {**head, "type": "reasoning", "summary": [], "content": parts}
        return {**head, "type": "message", "role": "assistant", "content": parts}

    def _id(self, block: Block) -> str:
        return f"{_PREFIXES[block.kind]}_{self._random}{block.index:04x}"

    # -- its events

    def _events(self, step: Step) -> bytes:
        block = step.block
        place = {"output_index": block.index}
        if step.kind == "open":
            item = {**self._item(block, "in_progress"), **_without_arguments(block)}
            out = self._event("response.output_item.added", **place, item=item)
            return out if block.kind == "call" else out + self._part_event("added", block)
        if step.kind == "delta":
            return self._delta(block, step)
        out = self._done(block)
        if block.kind != "call":
            out += self._part_event("done", block)
        item = self._item(block, "completed")
        return out + self._event("response.output_item.done", **place, item=item)

    def _delta(self, block: Block, step: Step) -> bytes:
        fields: dict[str, Any] = {**self._place(block), "delta": step.delta}
        if block.kind == "call":
            return self._event("response.function_call_arguments.delta", **fields)
        if block.kind == "reasoning":
            return self._event("response.reasoning_text.delta", **fields)
        fields["logprobs"] = list(step.logprobs)
        return self._event("response.output_text.delta", **fields)

    def _done(self, block: Block) -> bytes:
        place = self._place(block)
        if block.kind == "call":
            fields = {**place, "name": block.name, "arguments": block.text}
            return self._event("response.function_call_arguments.done", **fields)
        if block.kind == "reasoning":
            return self._event("response.reasoning_text.done", **place, text=block.text)
        fields = {**place, "text": block.text, "logprobs": block.logprobs}
        return self._event("response.output_text.done", **fields)

    def _part_event(self, what: str, block: Block) -> bytes:
        part = _part(block) if what == "done" else _part(Block(block.index, block.kind))
        return self._event(f"response.content_part.{what}", **self._place(block), part=part)

    def _place(self, block: Block) -> dict[str, Any]:
        place = {"item_id": self._id(block), "output_index": block.index}
        return place if block.kind == "call" else {**place, "content_index": 0}

    def _event(self, kind: str, /, **fields: Any) -> bytes:
        data = encode_json({"type": kind, "sequence_number": self._number, **fields})
        self._number += 1
        return format_event(data, kind)


def _part(block: Block) -> dict[str, Any]:
    if block.kind == "reasoning":
        return {"type": "reasoning_text", "text": block.text}
    text = {"type": "output_text", "text": block.text}
    return {**text, "annotations": [], "logprobs": block.logprobs}


def _without_arguments(block: Block) -> dict[str, Any]:
    return {"arguments": ""} if block.kind == "call" else {}
