"""Call schemas: tell which calls of a module may share a forward, join them, split the output.

The properties of each module are in `schema_table`.
"""

from __future__ import annotations

import inspect
import itertools
import weakref
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from typing import Any

import torch
from torch import nn

from deployments.hf_diffusers.stepping.calls.argument_roles import (
    Ignore,
    UnbatchableError,
    check,
    describe,
    freeze,
)
from deployments.hf_diffusers.stepping.calls.schema_guess import guess_spec
from deployments.hf_diffusers.stepping.calls.schema_table import SPECS, ModuleSpec, Padded
from deployments.hf_diffusers.stepping.calls.tensor_hash import Digests

LIBRARIES = ("diffusers", "transformers")
"""A user's own class with the name of a library's is not the library's class."""


@dataclass(frozen=True)
class Signature:
    """The arguments of a method without `self`, in order, and those with a default."""

    names: tuple[str, ...]
    defaults: Mapping[str, Any]


class CallSchema:
    """How calls of one method of one module class are compared, joined and split."""

    def __init__(self, spec: ModuleSpec, signature: Signature) -> None:
        self._spec = spec
        self._signature = signature

    @property
    def is_denoiser(self) -> bool:
        """Whether a call is a denoising step."""
        return self._spec.is_denoiser

    @property
    def primary(self) -> str:
        """The argument that says how many rows a call has."""
        return self._spec.primary

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Names the positional arguments by the real signature; adds no defaults.

        Raises:
            UnbatchableError: More positional arguments than the method has, or one given twice.
        """
        names = self._signature.names[: len(args)]
        doubled = [name for name in names if name in kwargs]
        if len(names) < len(args) or doubled:
            raise UnbatchableError(
                f"the call has {len(args)} positional arguments"
                f"{f' and {doubled} by name as well' if doubled else ''}: the method takes "
                f"{self._signature.names}"
            )
        return {**dict(zip(names, args, strict=True)), **kwargs}

    def num_rows(self, kwargs: Mapping[str, Any]) -> int:
        """Returns how many rows the call has.

        Raises:
            UnbatchableError: The argument that says so is missing, empty or of another type.
        """
        value = kwargs.get(self._spec.primary)
        if isinstance(value, torch.Tensor) and value.ndim > 0 and value.shape[0] > 0:
            return int(value.shape[0])
        if isinstance(value, list) and value:
            return len(value)
        raise UnbatchableError(
            f"argument {self._spec.primary!r} is {describe(value)}, not a tensor or list of rows"
        )

    def row_shape(self, kwargs: Mapping[str, Any]) -> tuple[int, ...]:
        """Returns the shape of one row of the argument that counts the rows.

        Raises:
            UnbatchableError: As for `num_rows`.
        """
        self.num_rows(kwargs)
        value = kwargs[self._spec.primary]
        shape = value[0].shape if isinstance(value, list) else value.shape[1:]
        return tuple(int(size) for size in shape)

    def key(self, kwargs: Mapping[str, Any], digests: Digests) -> Hashable:
        """Returns what two calls of the same module must have equal to share a forward.

        Raises:
            UnbatchableError: The call does not follow the schema: it must run alone.
        """
        num_rows = self.num_rows(kwargs)
        self._check_unknown(kwargs)
        keys = [
            (name, role.key(name, self._value(name, kwargs), num_rows, digests))
            for name, role in self._spec.roles.items()
        ]
        if self._spec.padded is not None:
            keys.append(
                (self._spec.padded.states, _padded_key(self._spec.padded, kwargs, num_rows))
            )
        return tuple(keys)

    def merge(self, calls: Sequence[Mapping[str, Any]], rows: Sequence[int]) -> dict[str, Any]:
        """Returns the arguments of one call that has all rows; one call alone is left as it is.

        The calls must have equal keys. Tensors are concatenated, so the caller may drop its own.
        """
        if len(calls) == 1:
            return dict(calls[0])
        device = _device(calls[0][self._spec.primary])
        merged = {}
        for name, role in self._spec.roles.items():
            if isinstance(role, Ignore) or not any(name in call for call in calls):
                continue
            values = [self._value(name, call) for call in calls]
            merged[name] = role.merge(values, rows, device)
        if self._spec.padded is not None:
            merged.update(_merge_padded(self._spec.padded, calls))
        return merged

    def split(self, output: Any, rows: Sequence[int]) -> list[Any]:
        """Returns each call's part of the output, in the output's own type; tensors are views.

        Raises:
            UnbatchableError: The output holds something that has no rows.
        """
        if len(rows) == 1:
            return [output]
        bounds = list(itertools.accumulate(rows, initial=0))
        return [
            _part(output, slice(start, stop), bounds[-1], self._spec.row_lists)
            for start, stop in itertools.pairwise(bounds)
        ]

    def _value(self, name: str, kwargs: Mapping[str, Any]) -> Any:
        return kwargs[name] if name in kwargs else self._signature.defaults.get(name)

    def _check_unknown(self, kwargs: Mapping[str, Any]) -> None:
        padded = self._spec.padded
        for name, value in kwargs.items():
            if name in self._spec.roles or (padded and name in (padded.states, padded.mask)):
                continue
            default = self._signature.defaults.get(name)
            if value is default:
                continue
            if freeze(name, value) != freeze(name, default):
                raise UnbatchableError(
                    f"argument {name!r} is {describe(value)}: it is not known how to batch it"
                )


_schemas: weakref.WeakKeyDictionary[type, dict[str, CallSchema | None]] = (
    weakref.WeakKeyDictionary()
)


def find_schema(module: nn.Module, method: str) -> CallSchema | None:
    """Returns the schema of a module's method, None if unknown; `__call__` means `forward`."""
    original = getattr(module, "_orig_mod", module)  # under torch.compile
    return _find(type(original), "forward" if method == "__call__" else method)


def guess_schema(module: nn.Module, method: str, kwargs: Mapping[str, Any]) -> CallSchema | None:
    """Returns a cautious schema for an unknown denoiser, made from one of its calls, or None.

    It is a guess: before it is used, batched calls with differing values must have been compared
    with the same calls alone.
    """
    if method not in ("forward", "__call__"):
        return None
    spec = guess_spec(kwargs)
    return None if spec is None else CallSchema(spec, _signature(type(module), "forward"))


def _find(cls: type, method: str) -> CallSchema | None:
    known = _schemas.setdefault(cls, {})
    if method not in known:
        known[method] = _create(cls, method)
    return known[method]


def _create(cls: type, method: str) -> CallSchema | None:
    definer = next((base for base in cls.__mro__ if method in vars(base)), None)
    if definer is None or definer.__module__.partition(".")[0] not in LIBRARIES:
        return None
    spec = SPECS.get((definer.__name__, method))
    return None if spec is None else CallSchema(spec, _signature(cls, method))


def _signature(cls: type, method: str) -> Signature:
    parameters = list(inspect.signature(getattr(cls, method)).parameters.values())[1:]
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return Signature(
        names=tuple(item.name for item in parameters if item.kind in positional),
        defaults={
            item.name: item.default
            for item in parameters
            if item.default is not inspect.Parameter.empty
        },
    )


def _device(primary: Any) -> Any:
    return (primary[0] if isinstance(primary, list) else primary).device


def _padded_key(padded: Padded, kwargs: Mapping[str, Any], num_rows: int) -> Hashable:
    states, mask = kwargs.get(padded.states), kwargs.get(padded.mask)
    wanted = f"a tensor of {num_rows} rows with a length"
    if not isinstance(states, torch.Tensor):
        raise UnbatchableError(f"argument {padded.states!r} is {describe(states)}, not {wanted}")
    fits = states.ndim >= 2 and states.shape[0] == num_rows
    check(fits, padded.states, states, wanted)
    if mask is not None:
        fits = isinstance(mask, torch.Tensor) and mask.shape == states.shape[:2]
        check(fits, padded.mask, mask, f"a tensor of shape {tuple(states.shape[:2])}")
    bucket = -(-states.shape[1] // padded.length_bucket)
    return bucket, tuple(states.shape[2:]), states.dtype, states.device


def _merge_padded(padded: Padded, calls: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    states = [call[padded.states] for call in calls]
    masks = [call.get(padded.mask) for call in calls]
    length = max(item.shape[1] for item in states)
    if all(mask is None for mask in masks) and all(item.shape[1] == length for item in states):
        return {padded.states: torch.cat(states), padded.mask: None}
    padded_states, padded_masks = [], []
    for item, mask in zip(states, masks, strict=True):
        missing = length - item.shape[1]
        full = item.new_ones(item.shape[:2], dtype=torch.bool) if mask is None else mask.bool()
        # F.pad counts dimensions from the last: the length is dimension 1.
        widths = (0, 0) * (item.ndim - 2) + (0, missing)
        padded_states.append(nn.functional.pad(item, widths))
        padded_masks.append(nn.functional.pad(full, (0, missing), value=False))
    return {padded.states: torch.cat(padded_states), padded.mask: torch.cat(padded_masks)}


def _part(output: Any, rows: slice, total: int, row_lists: bool) -> Any:
    """Returns some rows of an output of `total` rows, whatever containers it comes in."""
    if output is None:
        return None
    if isinstance(output, torch.Tensor):
        check(output.ndim > 0 and output.shape[0] == total, "output", output, f"of {total} rows")
        return output[rows]
    if row_lists and isinstance(output, list):
        check(len(output) == total, "output", output, f"a list of {total}")
        return output[rows]
    if isinstance(output, dict):
        parts = {name: _part(item, rows, total, row_lists) for name, item in output.items()}
        return type(output)(**parts) if is_dataclass(output) else parts
    if isinstance(output, (list, tuple)):
        items = [_part(item, rows, total, row_lists) for item in output]
        return type(output)(*items) if hasattr(output, "_fields") else type(output)(items)
    raise UnbatchableError(f"the output holds {describe(output)}: it cannot be split by rows")
