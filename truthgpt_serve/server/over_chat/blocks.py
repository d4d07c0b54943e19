"""Reads chat answers, whole or in chunks, as a sequence of blocks: reasoning, text and tool calls.

Shapes: `chat.completion` and `chat.completion.chunk` of OpenAI's API reference, with the reasoning
that other servers add as `reasoning_content` or `reasoning`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal, NamedTuple

Kind = Literal["reasoning", "text", "call"]
_REASONING = ("reasoning_content", "reasoning")


@dataclass(slots=True, eq=False)
class Block:
    """One part of an answer.

    Attributes:
        index: Its place among the answer's parts.
        kind: What it is.
        call_id: The id of a tool call.
        name: The function that a tool call is for.
        pieces: What has come of its text, or of a call's arguments as JSON.
        logprobs: Log probabilities of its tokens, if the answer has them.
    """

    index: int
    kind: Kind
    call_id: str = ""
    name: str = ""
    pieces: list[str] = field(default_factory=list)
    logprobs: list[Any] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All of its text that has come."""
        return "".join(self.pieces)


class Step(NamedTuple):
    """What happens to a block.

    Attributes:
        kind: Whether it begins, goes on or ends.
        block: The block.
        delta: What is new, where it goes on.
        logprobs: The log probabilities of that.
    """

    kind: Literal["open", "delta", "close"]
    block: Block
    delta: str = ""
    logprobs: tuple[Any, ...] = ()


class Blocks:
    """The parts of one answer, in their order; one is open at a time.

    Attributes:
        blocks: Those that have begun.
        model: The model's name in the answer.
        finish_reason: Why the answer ended, or None before it did.
        stop: The stop string that ended it, where the server says.
        usage: The counts of tokens, or nothing.
    """

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self.model = ""
        self.finish_reason: str | None = None
        self.stop: str | None = None
        self.usage: Mapping[str, Any] = {}
        self._open: Block | None = None
        self._calls: dict[int, Block] = {}

    @property
    def ended(self) -> bool:
        """Whether the chat answer has said why it ended."""
        return self.finish_reason is not None

    def take_whole(self, answer: Mapping[str, Any]) -> None:
        """Takes an answer that is not streamed; errors as of `take`."""
        for _ in chain(self.take(answer), self.fill()):
            pass

    def take(self, value: Mapping[str, Any]) -> Iterator[Step]:
        """Takes a chunk, or a whole answer; yields what happens by it.

        Raises:
            LookupError: It is not as chat answers are.
            TypeError: Likewise.
            AttributeError: Likewise.
        """
        self.model = value.get("model") or self.model
        self.usage = value.get("usage") or self.usage
        for choice in value["choices"][:1]:
            part = choice.get("delta") or choice.get("message") or {}
            logprobs = tuple((choice.get("logprobs") or {}).get("content") or ())
            yield from self._take_part(part, logprobs)
            self.finish_reason = choice.get("finish_reason") or self.finish_reason
            stop = choice.get("stop_reason")
            self.stop = stop if isinstance(stop, str) else self.stop

    def _take_part(self, part: Mapping[str, Any], logprobs: tuple[Any, ...]) -> Iterator[Step]:
        reasoning = next((part[name] for name in _REASONING if part.get(name)), "")
        if reasoning:
            yield from self._add(self._last("reasoning"), "reasoning", reasoning)
        text = part.get("content") or part.get("refusal") or ""
        if text:
            yield from self._add(self._last("text"), "text", text, logprobs)
        for place, call in enumerate(part.get("tool_calls") or ()):
            yield from self._take_call(call.get("index", place), call)

    def _take_call(self, index: int, call: Mapping[str, Any]) -> Iterator[Step]:
        function = call.get("function") or {}
        block = self._calls.get(index)
        if block is None:
            yield from self.end()
            block = Block(len(self.blocks), "call", call.get("id") or "", function["name"])
            self._calls[index] = block
            yield self._begin(block)
        if arguments := function.get("arguments"):
            block.pieces.append(arguments)
            yield Step("delta", block, arguments)

    def _last(self, kind: Kind) -> Block | None:
        return self._open if self._open is not None and self._open.kind == kind else None

    def _add(
        self, block: Block | None, kind: Kind, text: str, logprobs: tuple[Any, ...] = ()
    ) -> Iterator[Step]:
        if block is None:
            yield from self.end()
            block = Block(len(self.blocks), kind)
            yield self._begin(block)
        block.pieces.append(text)
        block.logprobs.extend(logprobs)
        yield Step("delta", block, text, logprobs)

    def _begin(self, block: Block) -> Step:
        self.blocks.append(block)
        self._open = block
        return Step("open", block)

    def end(self) -> Iterator[Step]:
        """Ends the open block, if there is one."""
        block, self._open = self._open, None
        if block is not None:
            yield Step("close", block)

    def fill(self) -> Iterator[Step]:
        """Ends the answer; one without any part becomes an empty text."""
        if not self.blocks:
            yield self._begin(Block(0, "text"))
        yield from self.end()

    def count(self, name: str) -> int:
        """Returns one of the counts of tokens; 0 where the answer does not say."""
        value = self.usage.get(name)
        return value if isinstance(value, int) else 0

    def detail(self, name: str, key: str) -> int:
        """Returns a count of the details of another one."""
        value = (self.usage.get(name) or {}).get(key)
        return value if isinstance(value, int) else 0
