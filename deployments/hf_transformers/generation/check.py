"""Proves at start that a way of batching gives the model's own tokens.

Whether an architecture works with a paged cache, or with padding, is nowhere written down reliably:
one that ignores the cache's mask answers, but wrongly.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

from deployments.hf_transformers.attention import differ
from deployments.hf_transformers.generation.backend import Backend
from deployments.hf_transformers.generation.job import TextCall, TextJob
from deployments.hf_transformers.generation.paged import PagedBackend
from truthgpt_serve.server.text.sampling import Sampling

TRIAL_TOKENS = 4
TRIAL_LENGTHS = (9, 21)
TIMEOUT_S = 300.0


class TrialError(Exception):
    """A way of batching does not give the model's own tokens; the message says how."""


def trial_prompts(model: Any) -> list[list[int]]:
    """Returns two prompts of different lengths, of arbitrary tokens."""
    size = int(model.config.get_text_config().vocab_size)
    return [[(37 * i + 11) % size for i in range(length)] for length in TRIAL_LENGTHS]


def expected_steps(model: Any, prompt: list[int]) -> tuple[list[int], list[torch.Tensor]]:
    """Returns the tokens that the model generates by itself, and the logits of each step."""
    ids = torch.tensor([prompt], device=model.device)
    with torch.inference_mode():
        outcome = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=TRIAL_TOKENS,
            return_dict_in_generate=True,
            output_logits=True,
        )
    tokens = outcome.sequences[0, -TRIAL_TOKENS:].tolist()
    return tokens, [logits[0] for logits in outcome.logits]


def trial_logits(model: Any) -> torch.Tensor:
    """Returns the model's logits behind the first trial prompt, `[vocabulary]`."""
    logits: torch.Tensor = expected_steps(model, trial_prompts(model)[0])[1][0]
    return logits


def run_trial(backend: Backend, prompts: Sequence[list[int]]) -> list[list[int]]:
    """Returns the tokens of prompts that run together.

    Raises:
        TrialError: The backend failed, or did not answer in time.
    """
    calls = [TextCall(prompt, TRIAL_TOKENS, Sampling()) for prompt in prompts]
    jobs = {
        f"trial-{index}": TextJob(call, f"trial-{index}", lambda tokens: "")
        for index, call in enumerate(calls)
    }
    found: dict[str, list[int]] = {name: [] for name in jobs}
    for job in jobs.values():
        backend.submit(job)
    deadline = time.monotonic() + TIMEOUT_S
    while any(len(tokens) < TRIAL_TOKENS for tokens in found.values()):
        for update in backend.poll(0.1):
            if update.error is not None:
                raise TrialError(update.error)
            found[update.name] += update.tokens
        if (failure := backend.failure()) is not None:
            raise TrialError(f"{type(failure).__name__}: {failure}")
        if time.monotonic() > deadline:
            raise TrialError(f"no answer within {TIMEOUT_S:g} s")
    return list(found.values())


def check_paged(backend: PagedBackend, model: Any, expected: list[Any]) -> None:
    """Compares the logits of every step with the model's own, then two prompts together.

    Args:
        backend: The backend.
        model: The model.
        expected: What `expected_steps` returned for each of `trial_prompts`, before the backend
            switched the attention.

    Raises:
        TrialError: They differ by more than rounding.
    """
    prompts = trial_prompts(model)
    for prompt, (tokens, logits) in zip(prompts, expected, strict=True):
        seen: list[torch.Tensor] = []
        backend.chooser.seen = seen
        found = run_trial(backend, [prompt])[0]
        backend.chooser.seen = None
        _compare_steps(found, seen, tokens, logits, model.dtype)
    together = run_trial(backend, prompts)
    if model.dtype is torch.float32 and together != [tokens for tokens, _ in expected]:
        raise TrialError(f"two prompts together give {together}, alone {expected}")


def _compare_steps(
    found: list[int],
    seen: list[torch.Tensor],
    tokens: list[int],
    logits: list[torch.Tensor],
    dtype: torch.dtype,
) -> None:
    for step, (row, own) in enumerate(zip(seen, logits, strict=False)):
        if differ(row[0], own, dtype):
            raise TrialError(f"the logits of token {step + 1} are not the model's own")
        if found[step] != tokens[step]:
            return  # two tokens as likely as each other: from here the texts differ


def takes_padding(backend: Backend, model: Any, expected: list[Any]) -> bool:
    """Returns whether prompts of different lengths give the same tokens together as alone."""
    if model.dtype is not torch.float32:
        return True  # rounding alone may change tokens: no proof either way
    return run_trial(backend, trial_prompts(model)) == [tokens for tokens, _ in expected]
