"""Turns what a pipeline passed to a module into a call with a key; does not run it."""

from __future__ import annotations

import inspect
from collections.abc import Hashable, Mapping
from typing import Any

import torch

from deployments.hf_diffusers.stepping.calls.argument_roles import UnbatchableError
from deployments.hf_diffusers.stepping.calls.schemas import CallSchema, find_schema, guess_schema
from deployments.hf_diffusers.stepping.pipelines.added import ModuleEntry
from deployments.hf_diffusers.stepping.scheduling.scheduled_job import ModuleCall, ScheduledJob


class Alone:
    """A key that equals no other."""


def create_call(
    scheduled: ScheduledJob,
    entry: ModuleEntry,
    method: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[ModuleCall, str]:
    """Returns the call, and why it must run alone although its module could be batched, or ''."""
    bank = entry.adapters
    if entry.is_decoder:
        args, kwargs = _as_dtype(entry.dtype, args, kwargs)
    call = ModuleCall(
        scheduled=scheduled,
        module=entry,
        method=method,
        args=args,
        kwargs=kwargs,
        bound=kwargs,
        schema=None,
        key=Alone(),
        num_rows=1,
        shape="",
        adapters=() if bank is None else bank.of(scheduled.adapters),
        device=_device(entry, args, kwargs),
        is_light=not entry.is_denoiser,
    )
    if scheduled.entry.mode == "solo" or (entry.is_decoder and method == "encode"):
        return call, ""
    if entry.is_solo:
        return call, "its calls gave other results in a batch, or failed there"
    try:
        schema = _find(entry, method, args, kwargs)
        if schema is None:
            return call, "no schema is known for it" if entry.is_denoiser else ""
        bound = schema.bind(args, kwargs)
        call.num_rows = schema.num_rows(bound)
        call.shape = "x".join(map(str, schema.row_shape(bound)))
        key = schema.key(bound, scheduled.digests)
    except UnbatchableError as error:
        return call, str(error)
    call.bound, call.schema = bound, schema
    if scheduled.probe is None:  # what is to be measured has the forward for itself
        call.key = (id(entry), method, key)
    return call, ""


def _as_dtype(
    dtype: torch.dtype, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Converts tensors for a VAE that is kept in float32, as the stock pipeline would have done."""

    def converted(value: Any) -> Any:
        is_float = isinstance(value, torch.Tensor) and value.is_floating_point()
        return value.to(dtype) if is_float else value

    return tuple(map(converted, args)), {name: converted(v) for name, v in kwargs.items()}


def _device(entry: ModuleEntry, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.device:
    for value in (*args, *kwargs.values()):
        item = value[0] if isinstance(value, list) and value else value
        if isinstance(item, torch.Tensor) and item.ndim > 1:
            return item.device
    return entry.device


def _find(
    entry: ModuleEntry, method: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> CallSchema | None:
    schema = find_schema(entry.module, method)
    if schema is not None or not entry.is_denoiser or method != "__call__":
        return schema
    parameters = inspect.signature(type(entry.module).forward).parameters
    named = {**dict(zip(list(parameters)[1:], args, strict=False)), **kwargs}
    form = structure(named)
    if form not in entry.guesses:
        entry.guesses[form] = guess_schema(entry.module, method, named)
    return entry.guesses[form]


def structure(named: Mapping[str, Any]) -> str:
    """Returns the names and forms of arguments, without the contents of tensors and the rows.

    A guess is made, and checked, for each structure anew.
    """
    return ",".join(f"{name}:{_form(named[name])}" for name in sorted(named))


def _form(value: Any) -> Hashable:
    if isinstance(value, torch.Tensor):
        return f"{value.dtype}{tuple(value.shape[1:])}{value.ndim}"
    if isinstance(value, (list, tuple)):
        return f"[{len(value)}:{_form(value[0]) if value else ''}]"
    return type(value).__name__
