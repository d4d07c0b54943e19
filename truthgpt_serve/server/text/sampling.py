"""How a model's tokens are chosen: the fields of a request, and what the model's own files say.

For families that choose tokens themselves; each computes by it with its own library.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len")
"""Fields of a model's configuration that say how long its texts may be."""
UNKNOWN_LENGTH = 2048
NO_LIMIT = 1 << 20
"""Tokenizers without a length say a number above this."""
CONFIGURED = (
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "min_new_tokens",
)
"""Fields of a generation configuration that say how tokens are chosen."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one text's tokens are chosen; names and meanings are those of OpenAI and vLLM.

    Attributes:
        temperature: Divides the logits; 0 takes the likeliest token.
        top_k: Only the so many likeliest tokens; 0 or less for all.
        top_p: Only the likeliest tokens with this probability together.
        min_p: Only tokens with this part of the likeliest one's probability.
        seed: Of the random numbers.
        repetition_penalty: Divides the positive logits, and multiplies the negative ones, of tokens
            in the prompt or the answer; 1 changes nothing (Keskar et al., 2019).
        presence_penalty: Subtracted from the logits of tokens in the answer.
        frequency_penalty: The same for each time that they occur.
        min_tokens: Tokens before which the text does not end.
        logit_bias: Token ids and what is added to their logits.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    min_tokens: int = 0
    logit_bias: tuple[tuple[int, float], ...] = ()

    @property
    def changes_logits(self) -> bool:
        """Whether a logit is changed before the likeliest token is known."""
        return (
            self.repetition_penalty != 1
            or self.presence_penalty != 0
            or self.frequency_penalty != 0
            or self.min_tokens > 0
            or bool(self.logit_bias)
        )


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """What a model's authors want where a request does not say.

    Attributes:
        end_ids: Tokens that end an answer.
        sampling: How tokens are chosen; greedy unless the authors say otherwise.
        sampled: The same for a request that asks for sampling without saying how.
    """

    end_ids: frozenset[int]
    sampling: Sampling
    sampled: Sampling


def read_defaults(generation: Mapping[str, Any], end: int | list[int] | None) -> SamplingDefaults:
    """Returns the defaults of a model.

    Args:
        generation: Its generation configuration, of which `CONFIGURED` is read.
        end: Its end tokens, as they stand there or in its tokenizer.
    """
    get = generation.get
    is_sampled = bool(get("do_sample"))
    sampled = Sampling(
        temperature=get("temperature") or 1.0,
        top_k=(get("top_k") or 0) if is_sampled else 0,
        top_p=get("top_p") or 1.0,
        min_p=get("min_p") or 0.0,
        repetition_penalty=get("repetition_penalty") or 1.0,
        min_tokens=get("min_new_tokens") or 0,
    )
    greedy = Sampling(repetition_penalty=sampled.repetition_penalty, min_tokens=sampled.min_tokens)
    ends = frozenset(end if isinstance(end, list) else [] if end is None else [end])
    return SamplingDefaults(ends, sampled if is_sampled else greedy, sampled)


def find_length(configured: Iterable[Any], tokenizer: Any) -> int:
    """Returns the most tokens of prompt and answer together.

    Args:
        configured: What the model's configuration has under `LENGTHS`, the best first; others than
            positive whole numbers are passed over.
        tokenizer: The model's, whose `model_max_length` counts where nothing else is said.
    """
    for value in configured:
        if isinstance(value, int) and value > 0:
            return value
    length = getattr(tokenizer, "model_max_length", None)
    return int(length) if isinstance(length, int) and length < NO_LIMIT else UNKNOWN_LENGTH
