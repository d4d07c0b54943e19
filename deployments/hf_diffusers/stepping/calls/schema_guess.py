"""Guesses, with caution, the roles of an unknown denoiser's arguments from one of its calls.

A self-check must confirm the guess.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch

from deployments.hf_diffusers.stepping.calls.argument_roles import (
    ArgumentRole,
    Row,
    Shared,
    Timestep,
    UnbatchableError,
    Value,
    freeze,
)
from deployments.hf_diffusers.stepping.calls.schema_table import ModuleSpec

PRIMARY_NAMES = ("hidden_states", "sample", "x", "latents", "z")
"""What denoisers call their noisy input, most common first."""

TIMESTEP_NAMES = frozenset({"timestep", "timesteps", "t"})

ROW_NAMES = frozenset(
    {
        "encoder_hidden_states",
        "encoder_attention_mask",
        "encoder_hidden_states_mask",
        "attention_mask",
        "pooled_projections",
        "timestep_cond",
        "class_labels",
        "guidance",
    }
)
"""Names that mean one item per row throughout diffusers. Of any other tensor it cannot be told from
a call with one row whether dimension 0 counts rows, so it is compared by its content."""


def guess_spec(kwargs: Mapping[str, Any]) -> ModuleSpec | None:
    """Returns a spec for calls that look like this one; None when one argument leaves a doubt."""
    primary = next((name for name in PRIMARY_NAMES if _is_tensor(kwargs.get(name))), None)
    if primary is None or kwargs[primary].ndim < 2:
        return None
    num_rows = kwargs[primary].shape[0]
    roles: dict[str, ArgumentRole] = {primary: Row()}
    for name, value in kwargs.items():
        if name == primary or value is None:
            continue
        role = _guess_role(name, value, num_rows)
        if role is None:
            return None
        roles[name] = role
    return ModuleSpec(primary=primary, roles=MappingProxyType(roles), is_denoiser=True)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def _guess_role(name: str, value: Any, num_rows: int) -> ArgumentRole | None:
    if name in TIMESTEP_NAMES:
        return Timestep() if _is_tensor(value) and value.ndim <= 1 else None
    if _is_tensor(value):
        if name in ROW_NAMES:
            return Row() if value.ndim > 0 and value.shape[0] == num_rows else None
        return Shared()
    try:
        freeze(name, value)
    except UnbatchableError:
        return None
    return Value()
