"""Counts a prompt's tokens as its pipeline will, so that none is cut off in silence.

Works on copies of the tokenizers: those of the pipelines are in use on the engine's thread.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from truthgpt_serve.errors import RequestError

NAMES = ("tokenizer", "tokenizer_2", "tokenizer_3", "tokenizer_4")
NO_LIMIT = 10**6
"""Tokenizers without a limit have a huge number in its place."""


@dataclass(frozen=True, slots=True)
class _Encoder:
    """One text encoder's tokenizer.

    Attributes:
        tokenizer: A copy.
        limit: Tokens that are read, `overhead` included, or None.
        overhead: Tokens of the template around every prompt.
    """

    tokenizer: Any
    limit: int | None
    overhead: int


class PromptCounter:
    """Counts tokens for one pipeline; thread-safe.

    A pipeline may have several text encoders, of which one reads more than the others (with CLIP's
    77 tokens beside T5, CLIP reads the beginning only, as in the stock pipeline). The one that
    reads most is the limit.

    Args:
        pipeline: The loaded pipeline.
        max_prompt_tokens: `serving.engine.max_prompt_tokens`.
        defaults: The parameters of the pipeline's call.
    """

    def __init__(
        self, pipeline: Any, max_prompt_tokens: int | None, defaults: Mapping[str, Any]
    ) -> None:
        self._lock = threading.Lock()
        sequence = max_prompt_tokens or defaults.get("max_sequence_length")
        encoders = [
            _Encoder(copied, _limit(copied, sequence), _overhead(pipeline, copied))
            for name in NAMES
            if (tokenizer := getattr(pipeline, name, None)) is not None
            and callable(copied := copy.deepcopy(getattr(tokenizer, "tokenizer", tokenizer)))
        ]
        self._widest = max(encoders, key=lambda e: e.limit or NO_LIMIT, default=None)
        # A learned word of several vectors becomes as many tokens.
        self._expand = getattr(pipeline, "maybe_convert_prompt", None)

    def count(self, text: str) -> int | None:
        """Returns the tokens of a text, None where the pipeline has no tokenizer."""
        if self._widest is None:
            return None
        with self._lock:
            tokenizer = self._widest.tokenizer
            if self._expand is not None and tokenizer.added_tokens_encoder:
                text = self._expand(text, tokenizer)
            return len(tokenizer(text, truncation=False, verbose=False).input_ids)

    def check(self, text: str, field: str) -> int | None:
        """Returns the tokens of a text.

        Raises:
            RequestError: There are more than any text encoder reads.
        """
        count = self.count(text)
        if count is None or self._widest is None or self._widest.limit is None:
            return count
        limit = self._widest.limit - self._widest.overhead
        if count > limit:
            raise RequestError(
                f"`{field}` has {count} tokens, and the text encoder reads at most {limit}: "
                f"shorten it by {count - limit} (the maximum context length is {limit} tokens)",
                param=field,
                code="context_length_exceeded",
            )
        return count


def _limit(tokenizer: Any, sequence: int | None) -> int | None:
    own = getattr(tokenizer, "model_max_length", None)
    own = own if isinstance(own, int) and own < NO_LIMIT else None
    if type(tokenizer).__name__.startswith("CLIP") or sequence is None:
        return own
    return sequence


def _overhead(pipeline: Any, tokenizer: Any) -> int:
    """Returns the tokens that the pipeline puts around a prompt and that count for the limit."""
    template = getattr(pipeline, "prompt_template_encode", None)
    if isinstance(template, str):
        around = len(tokenizer(template.format("")).input_ids)
        return around - int(getattr(pipeline, "prompt_template_encode_start_idx", 0))
    if not getattr(tokenizer, "chat_template", None):
        return 0
    system = getattr(pipeline, "system_message", None)
    messages = [{"role": "system", "content": system}] if isinstance(system, str) else []
    messages.append({"role": "user", "content": ""})
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return len(tokenizer(text).input_ids)
