"""Sends requests to an OpenAI-compatible address and takes the times of their answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import aiohttp
import msgspec

from truthgpt_serve.bench.outcome import Outcome, Request
from truthgpt_serve.bench.target import Target
from truthgpt_serve.http.foreign_errors import MAX_ERROR_BYTES, decode, find_fields
from truthgpt_serve.http.json_body import encode_json
from truthgpt_serve.http.sse import DONE, EventSplitter, EventTooLargeError

PATHS: Final = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "embeddings": "/v1/embeddings",
    "images": "/v1/images/generations",
}
STREAMED = frozenset({"chat", "completions"})
CONNECT_TIMEOUT_S = 30.0
MAX_ANSWER_BYTES = 256 << 20
MAX_EVENT_BYTES = 4 << 20


class _Delta(msgspec.Struct):
    content: Any = None
    reasoning_content: Any = None
    reasoning: Any = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    text: Any = None
    finish_reason: Any = None


class _Usage(msgspec.Struct):
    prompt_tokens: Any = None
    completion_tokens: Any = None


class _Event(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None


class _Answer(msgspec.Struct):
    usage: _Usage | None = None


_decode_event = msgspec.json.Decoder(_Event).decode
_decode_answer = msgspec.json.Decoder(_Answer).decode


class StreamMeter:
    """Takes the times of one answer's events, as `vllm bench serve` does.

    An event with a choice counts, whatever it says: the first ends the time to first token, each
    later one is an inter-token latency, and the last is the end of the request.

    Args:
        outcome: Filled in; its `start_s` is set.
        clock: Returns the time in seconds.
        keep_text: Whether the text is kept.
    """

    def __init__(
        self, outcome: Outcome, clock: Callable[[], float], *, keep_text: bool = False
    ) -> None:
        self._outcome = outcome
        self._clock = clock
        self._events = EventSplitter(MAX_EVENT_BYTES)
        self._last_s: float | None = None
        self._ended = False
        self._num_texts = 0
        self._texts: list[str] | None = [] if keep_text else None

    def feed(self, data: bytes) -> None:
        """Takes what has arrived."""
        try:
            for event in self._events.feed(data):
                self._take(event)
        except EventTooLargeError as error:
            self._outcome.fail("invalid event", str(error))

    def finish(self) -> None:
        """Ends the outcome: it is a failure unless the stream was whole and had an event."""
        for event in self._events.finish():
            self._take(event)
        outcome = self._outcome
        if not outcome.has_usage:
            outcome.output_tokens = self._num_texts
        if self._texts is not None:
            outcome.text = "".join(self._texts)
        if self._last_s is None:
            outcome.fail("empty stream", "the stream ended without an event that has a choice")
        elif not self._ended:
            outcome.fail("broken stream", "the stream ended without finish_reason and [DONE]")

    def _take(self, data: bytes) -> None:
        now_s = self._clock()
        if data == DONE:
            self._ended = True
            return
        try:
            event = _decode_event(data)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            self._outcome.fail("invalid event", f"{error}: {data[:100]!r}")
            return
        if event.error:
            self._outcome.fail("error event", _message(event.error))
        if event.choices:
            self._count(now_s, event.choices[0])
        if event.usage is not None:
            self._use(event.usage)

    def _count(self, now_s: float, choice: _Choice) -> None:
        outcome = self._outcome
        if self._last_s is None:
            outcome.ttft_s = now_s - outcome.start_s
        else:
            outcome.itls_s.append(now_s - self._last_s)
        self._last_s = now_s
        outcome.latency_s = now_s - outcome.start_s
        delta = choice.delta
        text = choice.text if delta is None else delta.content
        if text or (delta is not None and (delta.reasoning_content or delta.reasoning)):
            self._num_texts += 1
            if self._texts is not None and isinstance(text, str):
                self._texts.append(text)
        if choice.finish_reason is not None:
            self._ended = True

    def _use(self, usage: _Usage) -> None:
        if isinstance(usage.completion_tokens, int):
            self._outcome.output_tokens, self._outcome.has_usage = usage.completion_tokens, True
        if isinstance(usage.prompt_tokens, int):
            self._outcome.input_tokens = usage.prompt_tokens


class Client:
    """Sends requests over kept connections; use it as an asynchronous context manager.

    Args:
        target: The address, the model and the key.
        endpoint: A key of `PATHS`.
        timeout_s: The longest time of one request.
        fields: Further fields of each request's body.
        keep_text: Whether outcomes keep the generated text.
        clock: Returns the time in seconds.
    """

    def __init__(
        self,
        target: Target,
        endpoint: str,
        *,
        timeout_s: float,
        fields: Mapping[str, Any] | None = None,
        keep_text: bool = False,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.target = target
        self.endpoint = endpoint
        self.clock = clock
        self._url = target.url + PATHS[endpoint]
        self._timeout_s = timeout_s
        self._fields = dict(fields or {})
        self._keep_text = keep_text
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Client:
        self._session = self.target.session(self._timeout_s, CONNECT_TIMEOUT_S)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def send(self, request: Request, queue_s: float = 0.0) -> Outcome:
        """Sends one request and returns what came of it; raises only when it is cancelled."""
        assert self._session is not None, "use the client as a context manager"
        body = encode_json(self._body(request))
        outcome = Outcome(queue_s=queue_s, input_tokens=request.input_len)
        outcome.start_s = self.clock()
        try:
            async with self._session.post(
                self._url, data=body, headers={"content-type": "application/json"}
            ) as response:
                if response.status != 200:
                    error = await response.content.read(MAX_ERROR_BYTES)
                    outcome.fail(f"http {response.status}", _message(error))
                elif self.endpoint in STREAMED:
                    await self._read_stream(response, outcome)
                else:
                    await self._read_answer(response, outcome)
        except TimeoutError as error:  # aiohttp's own are of this kind too
            limit = str(error) or f"no end after {self._timeout_s:g} s"
            outcome.fail("timeout", limit)
        except aiohttp.ClientConnectorError as error:
            outcome.fail("no connection", str(error))
        except (aiohttp.ClientError, OSError, ValueError) as error:
            outcome.fail("broken connection", f"{type(error).__name__}: {error}")
        if not outcome.ok:
            outcome.detail = self.target.conceal(outcome.detail)
            outcome.latency_s = self.clock() - outcome.start_s
        return outcome

    def _body(self, request: Request) -> dict[str, Any]:
        body: dict[str, Any] = {"model": self.target.model}
        if self.endpoint == "chat":
            prompt = request.prompt
            body["messages"] = (
                [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
            )
        else:
            body["input" if self.endpoint == "embeddings" else "prompt"] = request.prompt
        if self.endpoint in STREAMED:
            if request.output_len is not None:
                name = "max_completion_tokens" if self.endpoint == "chat" else "max_tokens"
                body[name] = request.output_len
            body["stream"] = True
            body["stream_options"] = {"include_usage": True}
        return body | self._fields

    async def _read_stream(self, response: aiohttp.ClientResponse, outcome: Outcome) -> None:
        meter = StreamMeter(outcome, self.clock, keep_text=self._keep_text)
        async for data in response.content.iter_any():
            meter.feed(data)
            if outcome.error:
                return
        meter.finish()

    async def _read_answer(self, response: aiohttp.ClientResponse, outcome: Outcome) -> None:
        pieces = bytearray()
        async for data in response.content.iter_any():
            pieces += data
            if len(pieces) > MAX_ANSWER_BYTES:
                outcome.fail("too large", f"the answer has more than {MAX_ANSWER_BYTES} bytes")
                return
        outcome.latency_s = self.clock() - outcome.start_s
        outcome.has_usage = True  # such answers have no output tokens
        try:
            usage = _decode_answer(bytes(pieces)).usage
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            outcome.fail("invalid answer", str(error))
            return
        if usage is not None and isinstance(usage.prompt_tokens, int):
            outcome.input_tokens = usage.prompt_tokens


def _message(error: Any) -> str:
    """Returns the message of an error in any shape: a body, a decoded object or a text."""
    fields = find_fields(decode(error) if isinstance(error, bytes) else {"error": error})
    if fields is not None:
        return str(fields["message"])
    body = error if isinstance(error, bytes) else encode_json(error)
    return str(body, "utf-8", "replace").strip()
