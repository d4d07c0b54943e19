"""Log probabilities of a prompt's own tokens, by a forward pass beside the batches."""

from __future__ import annotations

import copy
import itertools
import logging
from typing import Any

import torch
from transformers import DynamicCache

from deployments.hf_transformers.attention import differ
from deployments.hf_transformers.generation.check import trial_prompts
from deployments.hf_transformers.generation.plan import TextInfo
from deployments.hf_transformers.generation.sampling import TokenLogprob, token_logprobs

logger = logging.getLogger(__name__)

MAX_LOGITS = 1 << 25
"""Logits of one forward pass: 128 MiB in float32. A long prompt takes several."""
MAX_TOKENS = 1024
"""Tokens of one forward pass."""
TRIAL_TOKENS = 5
"""Tokens of one forward pass of the trial: several for a prompt, so that the cache is tried."""


class PromptScorer:
    """Scores prompts with a decoder. `score` may run in any one thread, beside the batches.

    A forward pass of transformers changes the model's configuration while it runs, so this has
    modules of its own around the same weights.

    Args:
        model: The language model, before anything else runs it.
        vocab_size: Its vocabulary.
    """

    def __init__(self, model: Any, vocab_size: int) -> None:
        weights = itertools.chain(model.parameters(), model.buffers())
        self._model = copy.deepcopy(model, {id(tensor): tensor for tensor in weights})
        self._num_tokens = max(1, min(MAX_TOKENS, MAX_LOGITS // vocab_size))

    def agrees(self, prompt: list[int], tokens: list[int], expected: list[torch.Tensor]) -> bool:
        """Returns whether the logits are the model's own, tried on one prompt.

        Args:
            prompt: Token ids.
            tokens: The tokens that the model generates behind them.
            expected: The logits of each of those, `[vocabulary]`.
        """
        size, self._num_tokens = self._num_tokens, TRIAL_TOKENS
        try:
            logits = torch.cat(list(self._logits(prompt + tokens[:-1])))[-len(tokens) :]
        except Exception as error:  # an architecture with another kind of cache fails anyhow
            logger.warning("prompts have no log probabilities: %s: %s", type(error).__name__, error)
            return False
        finally:
            self._num_tokens = size
        return not any(
            differ(own, other, self._model.dtype)
            for own, other in zip(logits, expected, strict=True)
        )

    def score(self, prompt: list[int], num_top: int) -> list[TokenLogprob]:
        """Returns the log probability of each token of a prompt; the first has none.

        Args:
            prompt: Token ids, at least one.
            num_top: How many of the likeliest tokens are noted beside each.
        """
        found = [TokenLogprob(prompt[0], None, [])]
        for logits in self._logits(prompt[:-1]):
            following = prompt[len(found) : len(found) + len(logits)]
            tokens = torch.tensor(following, device=logits.device)
            found += token_logprobs(logits, tokens, [num_top] * len(following))
        return found

    def _logits(self, tokens: list[int]) -> Any:
        """Yields the logits behind each token, `[some tokens, vocabulary]`."""
        cache = DynamicCache(config=self._model.config)
        for first in range(0, len(tokens), self._num_tokens):
            ids = torch.tensor([tokens[first : first + self._num_tokens]])
            with torch.inference_mode():
                outcome = self._model(
                    input_ids=ids.to(self._model.device), past_key_values=cache, use_cache=True
                )
            yield outcome.logits[0]


def create_scorer(model: Any, info: TextInfo, expected: tuple[Any, Any]) -> PromptScorer | None:
    """Returns what scores prompts, or None where its logits are not the model's own.

    Args:
        model: The language model, before batches run it.
        info: What requests need to know of it.
        expected: The tokens and logits that it gives alone for the second trial prompt.
    """
    if info.encodes:
        return None
    try:
        scorer = PromptScorer(model, info.vocab_size)
    except Exception:  # weights of a kind that cannot be shared
        logger.warning("prompts have no log probabilities", exc_info=True)
        return None
    return scorer if scorer.agrees(trial_prompts(model)[1], *expected) else None
