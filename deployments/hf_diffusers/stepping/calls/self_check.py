"""Compares two outputs of a module."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from deployments.hf_diffusers.stepping.calls.schema_guess import PRIMARY_NAMES, TIMESTEP_NAMES

TELLING_NAMES = frozenset({*PRIMARY_NAMES, *TIMESTEP_NAMES, "encoder_hidden_states"})


def is_telling(calls: Sequence[Mapping[str, Any]]) -> bool:
    """Whether calls differ so that mixing up their rows would show in the outputs.

    Two requests in step with one another have equal timesteps: a module that reads only the first
    would pass.
    """
    first, *others = calls
    names = [name for name in TELLING_NAMES if isinstance(first.get(name), torch.Tensor)]
    return all(
        any(not torch.equal(first[name].cpu(), other[name].cpu()) for other in others)
        for name in names
    )


def largest_difference(one: Any, other: Any) -> float:
    """Returns the largest difference, relative to the other's largest absolute value.

    Infinite where their structures, shapes or types differ; NaN where one holds NaN.
    """
    ones, others = list(_tensors(one)), list(_tensors(other))
    if len(ones) != len(others) or not others:
        return float("inf")
    worst = 0.0
    for left, right in zip(ones, others, strict=True):
        if left.shape != right.shape or left.dtype != right.dtype:
            return float("inf")
        if right.numel() == 0:
            continue
        scale = max(float(right.abs().max()), 1e-6)
        difference = float((left.double() - right.double()).abs().max()) / scale
        if difference != difference:  # NaN
            return difference
        worst = max(worst, difference)
    return worst


def _tensors(output: Any) -> Iterator[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        yield output
    elif isinstance(output, dict):
        for item in output.values():
            yield from _tensors(item)
    elif isinstance(output, (list, tuple)):
        for item in output:
            yield from _tensors(item)
