"""The prompt of one answer: rendered, checked for its length, and as inputs for the class."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from truthgpt_serve.errors import ContextLengthError
from truthgpt_serve.server.text.request import ChatRequest, CompletionRequest, Prompt
from truthgpt_serve.server.text.tokenizer import Tokenizer
from truthgpt_serve.server.text_limits import CHARACTERS_A_TOKEN

T = TypeVar("T")


class SharedPrompt:
    """What answers to one prompt share: each thing is computed once, by whoever asks first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: dict[str, Any] = {}

    def once(self, name: str, compute: Callable[[], T]) -> T:
        """Returns what `compute` returned the first time for this name; its errors are not kept."""
        with self._lock:
            if name not in self._found:
                self._found[name] = compute()
            found: T = self._found[name]
            return found


class PreparedPrompt:
    """A prompt on its way to the class.

    Args:
        request: The checked request.
        given: The prompt as the request has it; for a chat it is rendered.
        tokenizer: The class's tokenizer.
        shared: What it shares with other answers to the same prompt.
        max_new_tokens: The most tokens that the request asks for.
        max_model_len: The most tokens of prompt and answer together, or None.

    Attributes:
        given: A text or token IDs, whole after `prepare`.
        max_new_tokens: The most tokens of the answer, after `prepare` no more than there is room.
    """

    __slots__ = ("_max_model_len", "_request", "_shared", "_tokenizer", "given", "max_new_tokens")

    def __init__(
        self,
        request: ChatRequest | CompletionRequest,
        given: Prompt,
        tokenizer: Tokenizer,
        shared: SharedPrompt,
        *,
        max_new_tokens: int,
        max_model_len: int | None,
    ) -> None:
        self.given = given
        self.max_new_tokens = max_new_tokens
        self._request = request
        self._tokenizer = tokenizer
        self._shared = shared
        self._max_model_len = max_model_len

    def prepare(self, render: Callable[[], str]) -> None:
        """Renders the prompt and sees how much room is left for the answer.

        Args:
            render: Returns the prompt of a chat.

        Raises:
            RequestError: The chat template refuses the messages, or would leave something out.
            ContextLengthError: The prompt is too long.
        """
        request = self._request
        if request.messages is not None:
            self.given = self._shared.once("text", render)
        if request.suffix and self._tokenizer.infilling is not None:
            before, middle, last = self._tokenizer.infilling
            self.given = f"{before}{self.given}{middle}{request.suffix}{last}"
        if self._max_model_len is not None:
            check = partial(self._check_length, self._max_model_len)
            self.max_new_tokens = min(self.max_new_tokens, self._shared.once("room", check))

    def inputs(self, number: int, constraint: Any) -> dict[str, Any]:
        """Returns the inputs for the class.

        Args:
            number: Which of the answers to this prompt; each has a seed of its own.
            constraint: What binds the answer, or None.
        """
        request, prompt = self._request, self.given
        inputs: dict[str, Any] = {"text" if isinstance(prompt, str) else "token_ids": prompt}
        inputs["max_new_tokens"] = self.max_new_tokens
        inputs |= request.sampling
        if number and "seed" in inputs:
            inputs["seed"] = (inputs["seed"] + number + 2**63) % 2**64 - 2**63
        if request.stop:
            inputs["stop"] = list(request.stop)
        if request.stop_token_ids:
            inputs["stop_token_ids"] = list(request.stop_token_ids)
        if self._is_templated:
            inputs["add_special_tokens"] = False  # the template has written them
        if request.logit_bias:
            inputs["logit_bias"] = request.logit_bias
        if request.num_logprobs is not None:
            inputs["logprobs"] = request.num_logprobs
            if request.echo:
                inputs["prompt_logprobs"] = True
        if constraint is not None:
            inputs["constraint"] = constraint
        return inputs

    def _check_length(self, limit: int) -> int:
        """Returns how many tokens are left for the answer."""
        param = "prompt" if self._request.messages is None else "messages"
        if isinstance(self.given, str):
            special = not self._is_templated
            return self._tokenizer.check(self.given, limit, special=special, param=param, answer=1)
        if len(self.given) + 1 > limit:
            raise ContextLengthError(limit, len(self.given) + 1, param=param)
        return limit - len(self.given)

    def as_text(self) -> str:
        """Returns the prompt as a text, empty if its token IDs cannot be decoded."""
        if isinstance(self.given, str):
            return self.given
        return self._tokenizer.decode(self.given) if self._tokenizer.decodes else ""

    def count(self) -> int | None:
        """Returns its tokens, or None if they cannot be counted."""
        return self._shared.once("tokens", self._count)

    def _count(self) -> int | None:
        if isinstance(self.given, str):
            return self._tokenizer.count(self.given, special=not self._is_templated)
        return len(self.given)

    def estimate(self) -> int:
        """Returns about how many tokens it has, without reading it."""
        return len(self.given) // (CHARACTERS_A_TOKEN if isinstance(self.given, str) else 1)

    @property
    def _is_templated(self) -> bool:
        return self._request.messages is not None and self._tokenizer.has_template
