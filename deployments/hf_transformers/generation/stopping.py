"""Ends `generate` of a transformers model between two tokens when the client disconnected."""

from __future__ import annotations

import functools
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from truthgpt_serve.cancellation import Call, CallCancelledError, current_call


def stop_when_cancelled(model: Any) -> None:
    """Has `model.generate` raise CallCancelledError at the next token once its call is cancelled.

    A pipeline has no place for a criterion that all its kinds of `generate` take. A model that does
    not generate is left as it is: its one pass is short.
    """
    if not (hasattr(model, "can_generate") and model.can_generate()):
        return
    generate = model.generate

    @functools.wraps(generate)
    def generate_until_cancelled(*args: Any, stopping_criteria: Any = None, **kwargs: Any) -> Any:
        criteria = StoppingCriteriaList([*(stopping_criteria or []), _Cancelled(current_call())])
        return generate(*args, stopping_criteria=criteria, **kwargs)

    model.generate = generate_until_cancelled


class _Cancelled(StoppingCriteria):
    """Stops by an exception: what is written so far is of no use to anyone."""

    def __init__(self, call: Call) -> None:
        self._call = call

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> torch.Tensor:
        if self._call.cancelled:
            raise CallCancelledError("every client of this call disconnected")
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
