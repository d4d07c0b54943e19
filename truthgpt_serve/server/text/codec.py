"""A text request's steps around `infer` and `stream`."""

from __future__ import annotations

from typing import Any

from truthgpt_serve.errors import ServerError
from truthgpt_serve.http.json_body import encode_json
from truthgpt_serve.server.text.request import ChatRequest, CompletionRequest
from truthgpt_serve.server.text.response import AnswerFormat, Usage
from truthgpt_serve.server.text.routes import TextFilter, Tokenizer
from truthgpt_serve.usage.counted import Usage as Counted
from truthgpt_serve.usage.counted import current_usage

DEFAULT_MAX_NEW_TOKENS = 256
"""`max_new_tokens` when neither the request nor the class (`default_max_new_tokens`) says one."""
FINISH_REASONS = ("stop", "length", "content_filter")
USAGE_KEYS = ("prompt_tokens", "completion_tokens")
CHARACTERS_A_TOKEN = 4
"""About, where a text is not tokenized."""


class TextExchange:
    """Renders the prompt, checks what the class returns, cuts it and encodes it.

    Args:
        request: The checked request.
        tokenizer: The class's tokenizer.
        default_max_new_tokens: For a request that gives no limit.
        label: The class's name, for messages.
        repeats_prompt: Whether a text that begins with the exact prompt is one that repeats it.
        max_model_len: The most tokens of prompt and answer together, or None.
    """

    __slots__ = (
        "_before",
        "_behind",
        "_collected",
        "_filter",
        "_finish_reason",
        "_format",
        "_label",
        "_limit",
        "_max_model_len",
        "_passes",
        "_prompt",
        "_repeats_prompt",
        "_request",
        "_started",
        "_tokenizer",
        "_usage_given",
        "_used",
        "done",
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
    ) -> None:
        self.done = False
        self._max_model_len = max_model_len
        self._repeats_prompt = repeats_prompt
        self._usage_given: Usage | None = None
        self._request = request
        self._tokenizer = tokenizer
        self._limit = request.max_new_tokens or default_max_new_tokens
        self._label = label
        self._format = AnswerFormat(
            request.model,
            chat=request.messages is not None,
            include_usage=request.include_usage,
        )
        self._prompt = request.prompt
        self._filter: TextFilter | None = None
        self._collected: list[str] = []
        self._finish_reason: str | None = None
        self._started = False
        self._passes = False
        self._before = self._behind = b""
        self._used = current_usage()
        if self._used is not None:
            self._used.at_end.append(self._count_unfinished)

    def prepare(self) -> dict[str, Any]:
        """Renders the prompt and returns the inputs for the class.

        Raises:
            RequestError: The chat template refuses the messages, or would leave something out.
            ContextLengthError: The prompt is too long.
        """
        request = self._request
        if request.messages is not None:
            self._prompt = self._tokenizer.render(request.messages)
        if self._max_model_len is not None:
            left = self._tokenizer.check(
                self._prompt,
                self._max_model_len,
                special=not self._is_templated,
                param="prompt" if request.messages is None else "messages",
                answer=1,
            )
            self._limit = min(self._limit, left)
        self._filter = TextFilter(self._prompt if self._repeats_prompt else "", request.stop)
        inputs = {"text": self._prompt, "max_new_tokens": self._limit, **request.sampling}
        if request.stop:
            inputs["stop"] = list(request.stop)
        if self._is_templated:
            inputs["add_special_tokens"] = False  # the template has written them
        return inputs

    @property
    def _is_templated(self) -> bool:
        return self._request.messages is not None and self._tokenizer.has_template

    def answer(self, outputs: Any) -> bytes:
        """Returns the body of the whole answer."""
        text = self._cut(self._take(outputs, "infer")) + self._rest()
        self._collected = [text]
        usage = self._usage()
        self._count(usage)
        return self._format.whole(text, self._reason(usage), usage)

    def piece(self, item: Any) -> bytes | None:
        """Returns the chunk for one item of `stream`, or None when no text is certain yet."""
        if self._passes and type(item) is dict and len(item) == 1:
            text = item.get("text")
            if type(text) is str and text:  # the way of nearly every chunk
                self._collected.append(text)
                return self._before + encode_json(text) + self._behind
        text = self._cut(self._take(item, "stream"))
        return self._chunk(text) if text else None

    def finish(self) -> bytes:
        """Returns the last chunks."""
        rest = self._rest()
        chunk = self._chunk(rest) if rest else b""
        if not self._started:
            chunk = self._format.first()
        needs_usage = self._request.include_usage or self._finish_reason is None
        usage = self._usage() if needs_usage or self._used is not None else None
        self._count(usage)
        return chunk + self._format.last(self._reason(usage), usage)

    def _chunk(self, text: str) -> bytes:
        self._collected.append(text)
        if self._started:
            return self._before + encode_json(text) + self._behind
        self._started = True
        self._passes = self._filter is None
        self._before, self._behind = self._format.frame()
        return self._format.first() + self._before + encode_json(text) + self._behind

    def _take(self, item: Any, method: str) -> str:
        text = item.get("text") if isinstance(item, dict) else None
        if not isinstance(text, str):
            verb = "yielded" if method == "stream" else "returned"
            raise ServerError(
                f"{self._label}.{method} {verb} {_described(item)}; a text-generation model "
                f"{'yields' if method == 'stream' else 'returns'} {{'text': str}}"
            )
        if (reason := item.get("finish_reason")) is not None:
            if reason not in FINISH_REASONS:
                raise ServerError(
                    f"{self._label}.{method} gave finish_reason {reason!r}; "
                    f"it is one of {', '.join(FINISH_REASONS)}"
                )
            self._finish_reason = reason
        if (usage := item.get("usage")) is not None:
            self._usage_given = _checked_usage(usage, f"{self._label}.{method}")
        return text

    def _cut(self, text: str) -> str:
        if self._filter is None:
            return text
        text = self._filter.push(text)
        if self._filter.stopped:
            self.done = True
            self._finish_reason = "stop"
        elif self._filter.transparent:
            self._filter = None
            self._passes = self._started
        return text

    def _rest(self) -> str:
        if self._filter is None or self._filter.stopped:
            return ""
        text = self._filter.flush()
        if self._filter.stopped:
            self._finish_reason = "stop"
        return text

    def _usage(self) -> Usage | None:
        if self._usage_given is not None:
            return self._usage_given
        if not self._tokenizer.counts:
            return None
        prompt = self._tokenizer.count(self._prompt, special=not self._is_templated)
        completion = self._tokenizer.count("".join(self._collected))
        if prompt is None or completion is None:
            return None
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        }

    def _count(self, usage: Usage | None) -> None:
        """Adds the answer to what its request used."""
        if self._used is None or usage is None:
            return
        used, self._used = self._used, None
        used.prompt_tokens += usage["prompt_tokens"]
        used.completion_tokens += usage["completion_tokens"]

    def _count_unfinished(self, used: Counted) -> None:
        """Adds an answer that was not finished: nearly, as nothing is read on the event loop."""
        if self._used is None or not self._collected:
            return
        used.prompt_tokens += len(self._prompt) // CHARACTERS_A_TOKEN
        used.completion_tokens += len(self._collected)

    def _reason(self, usage: Usage | None) -> str:
        if self._finish_reason is not None:
            return self._finish_reason
        return "length" if usage and usage["completion_tokens"] >= self._limit else "stop"


def _checked_usage(usage: Any, label: str) -> Usage:
    found = usage if isinstance(usage, dict) else {}
    counts = [found.get(key) for key in USAGE_KEYS]
    whole = [count for count in counts if type(count) is int and count >= 0]
    if len(whole) < len(USAGE_KEYS):
        raise ServerError(f"{label} gave a usage without whole numbers for {', '.join(USAGE_KEYS)}")
    return {**dict(zip(USAGE_KEYS, whole, strict=True)), "total_tokens": sum(whole)}


def _described(item: Any) -> str:
    if not isinstance(item, dict):
        return type(item).__name__
    if "text" not in item:
        return f"a dict with {', '.join(map(repr, list(item)[:5])) or 'nothing in it'}"
    return f"a dict whose 'text' is {type(item['text']).__name__}"
