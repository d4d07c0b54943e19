"""The steps of a chat with tools: the prompt tells of them, and the answer is read for calls."""

from __future__ import annotations

import os
from typing import Any

from truthgpt_serve.server.text.codec import TextCodec
from truthgpt_serve.server.text.reasoning import Thinking, ThoughtSplitter
from truthgpt_serve.server.text.response import Usage
from truthgpt_serve.server.text.tools.form import Form
from truthgpt_serve.server.text.tools.harmony import FINAL, HARMONY, HarmonyReader
from truthgpt_serve.server.text.tools.json_call import MAX_HELD_CALL, Delta
from truthgpt_serve.server.text.tools.parser import CallParser
from truthgpt_serve.server.text.tools.request import ToolUse

SHARE = 0.5
"""Part of an answer's tokens that thoughts before a bound answer may take, where none is said."""
REASONING = "reasoning"
"""The field of thoughts in messages and deltas, as at vLLM's."""


class ToolCodec(TextCodec):
    """One answer of a chat with tools, or of a model that thinks before it answers.

    Args:
        use: What the request says of tools, or None where there are none.
        thinks_first: Whether what binds the answer begins behind the thoughts.
        args: As for `TextCodec`.
        kwargs: Likewise.
    """

    __slots__ = (
        "_calls",
        "_is_harmony",
        "_parser",
        "_pending",
        "_splitter",
        "_thinks_first",
        "_use",
    )

    def __init__(
        self, use: ToolUse | None, *args: Any, thinks_first: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._thinks_first = thinks_first
        self._use = use
        self._calls: list[dict[str, Any]] = []
        self._pending: list[Delta] = []
        self._splitter: ThoughtSplitter | None = None
        form, is_bound = self._tokenizer.tooling.form, self._constraint is not None
        self._is_harmony = form.name == HARMONY
        self._parser: CallParser | HarmonyReader | None = None
        if use is not None or self._is_harmony:
            self._parser = make_parser(form, use, is_bound=is_bound)

    def _render(self) -> str:
        """Returns the prompt; a call that must be made is begun in it."""
        use, request = self._use, self._request
        if use is None:
            prompt = super()._render()
        else:
            messages = request.messages or []
            prompt = self._tokenizer.render(
                messages, use.tools, goes_on=request.goes_on, options=request.template_options
            )
            if use.is_forced and not self._thinks_first:
                return prompt + self._opening(use)
        return prompt + FINAL if self._is_final and not request.goes_on else prompt

    @property
    def _is_final(self) -> bool:
        """Whether the answer begins as one of gpt-oss's behind its thoughts."""
        is_bound = self._constraint is not None or self._request.goes_on
        is_forced = self._use is not None and self._use.is_forced
        return self._is_harmony and is_bound and not is_forced

    def _opening(self, use: ToolUse) -> str:
        """Returns how an answer that must be a call begins."""
        form = self._tokenizer.tooling.form
        return form.opening(use.name, is_bound=self._constraint is not None)

    def inputs(self) -> dict[str, Any]:
        """Returns the inputs for the class; errors as for `TextCodec`."""
        inputs, use = super().inputs(), self._use
        is_forced = use is not None and use.is_forced and not self._thinks_first
        if use is not None and self._parser is not None and is_forced:
            if use.name and self._tokenizer.tooling.form.arguments:
                self._pending = self._parser.expect(use.name)
            else:
                self._pending = self._parser.feed(self._opening(use))
        if self._is_harmony and self._parser is not None:
            self._pending += self._parser.feed(FINAL) if self._is_final else ()
            return inputs
        # What goes on has no thoughts, nor what is bound to a form from its beginning.
        bound = self._constraint is not None and not self._thinks_first
        thinking = self._tokenizer.reasoning
        if thinking is None or bound or is_forced or self._request.goes_on:
            return inputs
        self._splitter = ThoughtSplitter(str(self._prompt.given), thinking)
        budget = self._request.thinking_token_budget
        if self._thinks_first or budget is not None:
            thoughts = self._thoughts(thinking, str(self._prompt.given).rstrip(), budget)
            inputs |= {} if thoughts is None else {"thoughts": thoughts}
        return inputs

    def _thoughts(
        self, thinking: Thinking, prompt: str, budget: int | None
    ) -> dict[str, Any] | None:
        """Returns what a class is told of thoughts; None where the prompt has ended them."""
        if prompt.endswith(thinking.end):
            return None
        begin, end = map(self._tokenizer.token_id, (thinking.begin, thinking.end))
        most = int(self._prompt.max_new_tokens * SHARE) if budget is None else budget
        begun = prompt.endswith(thinking.begin)
        return {"begin_id": begin, "end_id": end, "max_tokens": most, "is_begun": begun}

    def _read(self, text: str) -> list[Delta]:
        if self._splitter is None:
            return self._read_said(text)
        thought, said = self._splitter.feed(text)
        return [*_thoughts(thought), *self._read_said(said)]

    def _read_said(self, text: str) -> list[Delta]:
        if self._parser is not None:
            return self._parser.feed(text)
        return [Delta(text=text)] if text else []

    def _finish(self) -> list[Delta]:
        deltas: list[Delta] = []
        if self._splitter is not None:
            thought, said = self._splitter.finish()
            deltas = [*_thoughts(thought), *self._read_said(said)]
        if self._parser is None:
            return deltas
        return [*deltas, *self._parser.finish(cut=self._finish_reason == "length")]

    def _choice(self, text: str, usage: Usage | None, logprobs: Any) -> dict[str, Any]:
        deltas = [*self._pending, *self._read(text), *self._finish()]
        thought = "".join(delta.thought for delta in deltas)
        said = "".join(delta.text for delta in deltas)
        for delta in deltas:
            self._note(delta)
        choice = self._format.choice(said, self._reason(usage), logprobs, self._stop)
        if self._calls:
            choice["message"] |= {"content": said or None, "tool_calls": self._calls}
        if thought:
            choice["message"] |= {"content": said or None, REASONING: thought}
        return choice

    def encode_chunk(self, item: Any) -> bytes | None:
        """Returns the chunks for one item of `stream`, or None when nothing is certain yet."""
        text = self._cut(self._take(item, "stream"))
        chunk = self._chunk(text) if text or self._entries else b""
        self.done = self.done or (self._parser is not None and self._parser.done)
        return chunk or None

    def _chunk(self, text: str) -> bytes:
        self._collected.append(text)
        return self._encoded(self._read(text))

    def _last_chunk(self) -> bytes:
        return self._encoded(self._finish())

    def _encoded(self, deltas: list[Delta]) -> bytes:
        pending, self._pending = self._pending, []
        values = [self._value(delta) for delta in (*pending, *deltas)]
        if not values and not self._entries:
            return b""
        chunk = b"" if self._started else self._format.first()
        self._started = True
        logprobs = None
        if self._logprobs is not None and self._entries:
            entries, self._entries = self._entries, []
            logprobs = self._logprobs.shape(entries)
            values = values or [{}]
        for value in values:
            chunk += self._format.delta(value, logprobs)
            logprobs = None
        return chunk

    def _value(self, delta: Delta) -> dict[str, Any]:
        """Returns what a chunk says of a delta."""
        self._note(delta)
        if delta.thought:
            return {REASONING: delta.thought}
        if delta.text:
            return {"content": delta.text}
        index = len(self._calls) - 1
        if delta.name:
            call = self._calls[-1]
            return {"tool_calls": [{**call, "index": index, "function": {**call["function"]}}]}
        return {"tool_calls": [{"index": index, "function": {"arguments": delta.arguments}}]}

    def _note(self, delta: Delta) -> None:
        if delta.name:
            function = {"name": delta.name, "arguments": ""}
            length = self._tokenizer.tooling.form.id_length
            is_known = any(call["id"] == delta.call_id for call in self._calls)
            call_id = _new_id(length) if is_known or not delta.call_id else delta.call_id
            self._calls.append({"id": call_id, "type": "function", "function": function})
        if delta.arguments and self._calls:
            self._calls[-1]["function"]["arguments"] += delta.arguments

    def _reason(self, usage: Usage | None) -> str:
        reason = super()._reason(usage)
        is_whole = self._parser is not None and self._parser.done  # what came then is not given
        return "tool_calls" if self._calls and (is_whole or reason == "stop") else reason


def make_parser(
    form: Form, use: ToolUse | None, *, is_bound: bool = False
) -> CallParser | HarmonyReader:
    """Returns what reads the calls of one answer; see `CallParser`."""
    if use is None or form.name == HARMONY:
        max_held = 0 if is_bound else MAX_HELD_CALL
        return HarmonyReader(use.schemas if use is not None else (), max_held=max_held)
    return CallParser(form, use.schemas, single=use.single, is_bound=is_bound)


def _thoughts(text: str) -> list[Delta]:
    return [Delta(thought=text)] if text else []


def _new_id(length: int) -> str:
    return os.urandom(12).hex()[:length] if length else f"call_{os.urandom(12).hex()}"
