"""The tokens of one answer, as its class gives them or as they are counted here."""

from __future__ import annotations

from truthgpt_serve.server.text.prompt import PreparedPrompt
from truthgpt_serve.server.text.request import ChatRequest, CompletionRequest
from truthgpt_serve.server.text.response import Usage
from truthgpt_serve.server.text.tokenizer import Tokenizer
from truthgpt_serve.usage.counted import Usage as Counted
from truthgpt_serve.usage.counted import current_usage


class TokenCount:
    """Finds the tokens of one answer, and adds them to what its request used.

    Args:
        prompt: The prompt.
        tokenizer: The class's tokenizer.
        request: The checked request.
        texts: The answer as far as it was made; it grows.
        number: Which of the answers to that prompt: with the first, the prompt counts.

    Attributes:
        given: What the class said, or None.
    """

    __slots__ = (
        "_begun",
        "_number",
        "_prompt",
        "_request",
        "_texts",
        "_tokenizer",
        "_used",
        "given",
    )

    def __init__(
        self,
        prompt: PreparedPrompt,
        tokenizer: Tokenizer,
        request: ChatRequest | CompletionRequest,
        texts: list[str],
        number: int,
    ) -> None:
        self.given: Usage | None = None
        self._prompt = prompt
        self._tokenizer = tokenizer
        self._request = request
        self._texts = texts
        self._number = number
        self._begun = False
        self._used = current_usage()
        if self._used is not None:
            self._used.at_end.append(self._add_unfinished)

    @property
    def is_keyed(self) -> bool:
        """Whether the request has a key, which its tokens count for."""
        return self._used is not None and self._used.priority is not None

    def begin(self) -> None:
        """Notes that the class is asked: from now on the prompt counts, however it ends."""
        self._begun = True

    def find(self) -> Usage | None:
        """Returns the tokens of the whole answer and adds them; None if nobody can count them."""
        usage = self._find()
        if self._used is not None and usage is not None:
            used, self._used = self._used, None
            if self._number == 0:  # each prompt counts once, however many answers it has
                used.prompt_tokens += usage["prompt_tokens"]
            used.completion_tokens += usage["completion_tokens"]
        return usage

    def _find(self) -> Usage | None:
        if self.given is not None:
            if self._request.max_new_tokens != 0:
                return self.given
            prompt = self.given["prompt_tokens"]
            return {"prompt_tokens": prompt, "completion_tokens": 0, "total_tokens": prompt}
        if not self._tokenizer.counts:
            return None
        counted = self._prompt.count()
        completion = self._tokenizer.count("".join(self._texts))
        if counted is None or completion is None:
            return None
        return {
            "prompt_tokens": counted,
            "completion_tokens": completion,
            "total_tokens": counted + completion,
        }

    def _add_unfinished(self, used: Counted) -> None:
        """Adds an answer that was not finished: nearly, as nothing is read on the event loop.

        One that is not streamed has only its prompt here; a class adds the tokens that it made.
        """
        if self._used is None or not self._begun or (used.failed and not self._texts):
            return
        self._used = None
        if self._number == 0:
            used.prompt_tokens += self._prompt.estimate()
        used.completion_tokens += len(self._texts)
