"""A text request's steps around `infer` and `stream`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from truthgpt_serve.http.json_body import encode_json
from truthgpt_serve.server.text.filter import TextFilter
from truthgpt_serve.server.text.items import check_item
from truthgpt_serve.server.text.logprobs import LogprobFormat
from truthgpt_serve.server.text.prompt import PreparedPrompt, SharedPrompt
from truthgpt_serve.server.text.request import ChatRequest, CompletionRequest
from truthgpt_serve.server.text.response import AnswerFormat, Usage
from truthgpt_serve.server.text.token_count import TokenCount
from truthgpt_serve.server.text.tokenizer import Tokenizer

DEFAULT_MAX_NEW_TOKENS = 256
"""`max_new_tokens` when neither the request nor the class (`default_max_new_tokens`) says one."""

FEW_MESSAGES, SHORT_CHAT = 16, 65536
"""Messages or calls, and characters of them, that a chat template renders in no time."""


@dataclass(frozen=True, slots=True)
class Part:
    """Which of a request's answers a codec makes.

    Attributes:
        prompt: The number of its prompt.
        number: Which of the answers to that prompt.
        index: The number of its choice.
        alone: Whether it is the only one: then it makes the whole body, and the end of a stream.
    """

    prompt: int = 0
    number: int = 0
    index: int = 0
    alone: bool = True


ONLY = Part()


class TextCodec:
    """Renders the prompt, checks what the class returns, cuts it and encodes it.

    Args:
        request: The checked request.
        tokenizer: The class's tokenizer.
        default_max_new_tokens: For a request that gives no limit.
        label: The class's name, for messages.
        repeats_prompt: Whether a text that begins with the exact prompt is one that repeats it.
        max_model_len: The most tokens of prompt and answer together, or None.
        part: Which of the request's answers it makes.
        constraint: What binds the answer, for a class that takes it, or None.
        shared: What it shares with other answers to the same prompt.

    Attributes:
        usage: The token counts, once they are known.
    """

    __slots__ = (
        "_before",
        "_behind",
        "_collected",
        "_constraint",
        "_count",
        "_entries",
        "_filter",
        "_finish_reason",
        "_format",
        "_label",
        "_lead",
        "_logprobs",
        "_part",
        "_passes",
        "_prompt",
        "_repeats_prompt",
        "_request",
        "_started",
        "_stop",
        "_tokenizer",
        "done",
        "usage",
    )

    def __init__(
        self,
        request: ChatRequest | CompletionRequest,
        tokenizer: Tokenizer,
        default_max_new_tokens: int,
        label: str,
        *,
        repeats_prompt: bool = True,
        max_model_len: int | None = None,
        part: Part = ONLY,
        constraint: Any = None,
        shared: SharedPrompt | None = None,
    ) -> None:
        self.done = False
        self.usage: Usage | None = None
        self._part = part
        self._constraint = constraint
        self._repeats_prompt = repeats_prompt
        self._request = request
        self._tokenizer = tokenizer
        limit = request.max_new_tokens or default_max_new_tokens
        if request.max_new_tokens == 0:
            limit = 1  # the prompt alone is wanted, which no class answers with
        self._label = label
        self._format = format_of(request)
        self._prompt = PreparedPrompt(
            request,
            request.prompt[part.prompt],
            tokenizer,
            shared or SharedPrompt(),
            max_new_tokens=limit,
            max_model_len=max_model_len,
        )
        self._lead = ""
        self._entries: list[Any] = []
        self._logprobs: LogprobFormat | None = None
        if (num_top := request.num_logprobs) is not None:
            chat = request.messages is not None
            self._logprobs = LogprobFormat(tokenizer, chat=chat, num_top=num_top, label=label)
        self._filter: TextFilter | None = None
        self._collected: list[str] = []
        self._finish_reason: str | None = None
        self._stop: str | None = None
        self._started = False
        self._passes = False
        self._before = self._behind = b""
        self._count = TokenCount(self._prompt, tokenizer, request, self._collected, part.number)

    @property
    def takes_long(self) -> bool:
        """Whether to render the chat takes long: templates are tried with each odd message."""
        messages = self._request.messages or ()
        if len(messages) > FEW_MESSAGES or self._request.tool_use is not None:
            return True
        num_calls = sum(len(message.get("tool_calls", ())) for message in messages)
        size = sum(len(message["content"]) for message in messages)
        return num_calls > FEW_MESSAGES or size > SHORT_CHAT

    def use(self, answer_format: AnswerFormat) -> None:
        """Makes the answer one of several of the same body."""
        self._format = answer_format.numbered(self._part.index)

    def inputs(self) -> dict[str, Any]:
        """Renders the prompt and returns the inputs for the class.

        Raises:
            RequestError: The chat template refuses the messages, or would leave something out.
            ContextLengthError: The prompt is too long.
        """
        request, prompt = self._request, self._prompt
        prompt.prepare(self._render)
        repeated = prompt.as_text() if self._repeats_prompt else ""
        self._filter = TextFilter(repeated, request.stop)
        if request.echo:
            self._lead = prompt.as_text()
        self._count.begin()
        return prompt.inputs(self._part.number, self._constraint)

    def _render(self) -> str:
        """Returns the prompt of a chat."""
        request = self._request
        options = request.template_options
        messages = request.messages or []
        return self._tokenizer.render(messages, goes_on=request.goes_on, options=options)

    def encode(self, outputs: Any) -> Any:
        """Returns the body of the whole answer; its choice, where it is one of several."""
        text = self._cut(self._take(outputs, "infer")) + self._rest()
        self._collected[:] = [text]
        self.usage = usage = self._count.find()
        logprobs = None if self._logprobs is None else self._logprobs.shape(self._entries)
        choice = self._choice(text, usage, logprobs)
        return self._format.body([choice], usage) if self._part.alone else choice

    def _choice(self, text: str, usage: Usage | None, logprobs: Any) -> dict[str, Any]:
        reason = self._reason(usage)
        return self._format.choice(self._lead + text, reason, logprobs, self._stop)

    def encode_chunk(self, item: Any) -> bytes | None:
        """Returns the chunk for one item of `stream`, or None when no text is certain yet."""
        if self._passes and type(item) is dict and len(item) == 1:
            text = item.get("text")
            if type(text) is str and text:  # the way of nearly every chunk
                self._collected.append(text)
                return self._before + encode_json(text) + self._behind
        text = self._cut(self._take(item, "stream"))
        return self._chunk(text) if text or self._entries else None

    def encode_end(self) -> bytes:
        """Returns the last chunks."""
        rest = self._rest()
        chunk = self._chunk(rest) if rest or self._lead else b""
        chunk += self._last_chunk()
        if not self._started:
            chunk = self._format.first()
        needs_usage = self._request.include_usage or self._finish_reason is None
        self.usage = usage = self._count.find() if needs_usage or self._count.is_keyed else None
        chunk += self._format.last(self._reason(usage), self._stop)
        return chunk + self._format.end(usage) if self._part.alone else chunk

    def _last_chunk(self) -> bytes:
        """Returns what only the end of the text makes certain."""
        return b""

    def _chunk(self, text: str) -> bytes:
        self._collected.append(text)
        text, self._lead = self._lead + text, ""
        first = b"" if self._started else self._format.first()
        if not self._started:
            self._started = True
            self._passes = self._filter is None and self._logprobs is None
            self._before, self._behind = self._format.frame()
        if self._logprobs is not None:
            entries, self._entries = self._entries, []
            return first + self._format.chunk(text, self._logprobs.shape(entries))
        return first + self._before + encode_json(text) + self._behind

    def _take(self, item: Any, method: str) -> str:
        text, reason, usage = check_item(item, self._label, method)
        if reason is not None:
            self._finish_reason = reason
            stop = item.get("stop_reason")
            self._stop = stop if isinstance(stop, str) else None
        if usage is not None:
            self._count.given = usage
        if self._logprobs is not None:
            self._entries += item.get("prompt_logprobs") or ()
            if self._request.max_new_tokens != 0:
                self._entries += item.get("logprobs") or ()
        if self._request.max_new_tokens == 0:
            self._finish_reason = "length"
            return ""
        return text

    def _cut(self, text: str) -> str:
        if self._filter is None:
            return text
        text = self._filter.push(text)
        if self._filter.stopped:
            self.done = True
            self._finish_reason, self._stop = "stop", self._filter.stop
        elif self._filter.transparent:
            self._filter = None
            self._passes = self._started and self._logprobs is None
        return text

    def _rest(self) -> str:
        if self._filter is None or self._filter.stopped:
            return ""
        text = self._filter.flush()
        if self._filter.stopped:
            self._finish_reason, self._stop = "stop", self._filter.stop
        return text

    def _reason(self, usage: Usage | None) -> str:
        if self._finish_reason is not None:
            return self._finish_reason
        most = self._prompt.max_new_tokens
        return "length" if usage and usage["completion_tokens"] >= most else "stop"


def format_of(request: ChatRequest | CompletionRequest) -> AnswerFormat:
    """Returns the encoder of a request's answers."""
    chat = request.messages is not None
    return AnswerFormat(request.model, chat=chat, include_usage=request.include_usage)
