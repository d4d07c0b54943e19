"""The roles an argument of a batchable module can have: how it is compared and how it is joined.

`schema_table` says which argument has which role.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from deployments.hf_diffusers.stepping.calls.tensor_hash import Digests


class UnbatchableError(Exception):
    """A call cannot share a forward with others; it must run alone, as the pipeline made it."""


def check(holds: bool, name: str, value: Any, wanted: str) -> None:
    """Raises UnbatchableError naming the argument, what it is and what its role wants."""
    if not holds:
        raise UnbatchableError(f"argument {name!r} is {describe(value)}, not {wanted}")


def describe(value: Any) -> str:
    """Returns a short description for an error message, never the content of a tensor."""
    if isinstance(value, torch.Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)}"
    if isinstance(value, (list, tuple)):
        return f"a {type(value).__name__} of {len(value)}"
    text = repr(value)
    return text if len(text) <= 60 else f"a {type(value).__name__}"


class ArgumentRole(ABC):
    """How one argument is compared between calls and joined into one batch."""

    @abstractmethod
    def key(self, name: str, value: Any, num_rows: int, digests: Digests) -> Hashable:
        """Returns what must be equal for two values to share a forward.

        Raises:
            UnbatchableError: The value is not what the role says it is.
        """

    def merge(self, values: Sequence[Any], rows: Sequence[int], device: Any) -> Any:
        """Returns the one value for calls of `rows` rows each, whose keys are equal.

        This one takes the first, for roles whose equal keys mean equal values.
        """
        return values[0]


@dataclass(frozen=True)
class Row(ArgumentRole):
    """A tensor whose dimension 0 counts the rows, or None: concatenated."""

    def key(self, name: str, value: Any, num_rows: int, digests: Digests) -> Hashable:
        """Compares the shape of one row, dtype and device."""
        if value is None:
            return None
        fits = isinstance(value, torch.Tensor) and value.ndim > 0 and value.shape[0] == num_rows
        check(fits, name, value, f"a tensor of {num_rows} rows")
        return tuple(value.shape[1:]), value.dtype, value.device

    def merge(self, values: Sequence[Any], rows: Sequence[int], device: Any) -> Any:
        """Concatenates along the rows."""
        return None if values[0] is None else torch.cat(list(values))


@dataclass(frozen=True)
class Timestep(ArgumentRole):
    """A number, a 0-d tensor, or a tensor with one item or an item per row: one item per row.

    `dtype` is given where the module converts to it anyway before it reads the value; then
    schedulers with integer and with float timesteps share a forward. Without it, only tensors of
    one dtype do.
    """

    dtype: Any = None

    def key(self, name: str, value: Any, num_rows: int, digests: Digests) -> Hashable:
        """Compares the dtype, unless it is converted."""
        if value is None:
            return None
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            check(self.dtype is not None, name, value, "a tensor")
            return str(self.dtype)
        fits = isinstance(value, torch.Tensor) and (
            value.ndim == 0 or (value.ndim == 1 and value.shape[0] in (1, num_rows))
        )
        check(fits, name, value, f"a number, or a tensor of 1 or {num_rows} items")
        return str(self.dtype or value.dtype)

    def merge(self, values: Sequence[Any], rows: Sequence[int], device: Any) -> Any:
        """Expands each value to its rows and concatenates, on the device of the rows."""
        if values[0] is None:
            return None
        dtype = self.dtype or values[0].dtype
        # Stock schedulers may keep timesteps on the CPU: one copy to the device, not one each.
        flat = [torch.as_tensor(value).reshape(-1).to(dtype) for value in values]
        if len({item.device for item in flat}) > 1:
            flat = [item.to(device) for item in flat]
        parts = [item.expand(count) for item, count in zip(flat, rows, strict=True)]
        return torch.cat(parts).to(device)


@dataclass(frozen=True)
class Shared(ArgumentRole):
    """A tensor that the module reads once for the whole batch: its content must be equal.

    With `batched_ndim` dimensions it has a leading batch dimension of which the module reads only
    item 0; only that one is compared, and it stands for all rows of the merged call.
    """

    batched_ndim: int | None = None

    def key(self, name: str, value: Any, num_rows: int, digests: Digests) -> Hashable:
        """Compares shape, dtype, device and content."""
        if value is None:
            return None
        check(isinstance(value, torch.Tensor) and value.numel() > 0, name, value, "a tensor")
        if value.ndim == self.batched_ndim:
            content = digests.of(value, first_row=True)
            return "first", tuple(value.shape[1:]), value.dtype, value.device, content
        return tuple(value.shape), value.dtype, value.device, digests.of(value)

    def merge(self, values: Sequence[Any], rows: Sequence[int], device: Any) -> Any:
        """Takes the first: the others are equal."""
        first = values[0]
        if first is None or first.ndim != self.batched_ndim:
            return first
        return first[:1].expand(sum(rows), *first.shape[1:])


@dataclass(frozen=True)
class RowList(ArgumentRole):
    """A list with a tensor per row: lists are joined, for modules that take them so.

    `ragged`: the items may differ in their first dimension, because the module itself pads and
    masks them; lengths in one multiple of `length_bucket` share a forward, so that a short prompt
    is not made to pay for a long one.
    """

    ragged: bool = False
    length_bucket: int = 256

    def key(self, name: str, value: Any, num_rows: int, digests: Digests) -> Hashable:
        """Compares the shape of an item (a ragged one without its length), dtype and device."""
        fits = isinstance(value, list) and len(value) == num_rows
        check(fits, name, value, f"a list of {num_rows} tensors")
        forms = {self._form(name, item) for item in value}
        check(len(forms) == 1, name, value, "a list of tensors of one shape")
        return forms.pop()

    def _form(self, name: str, item: Any) -> Hashable:
        check(isinstance(item, torch.Tensor) and item.ndim > 0, name, item, "a tensor")
        shape = tuple(item.shape)
        if self.ragged:
            shape = ((shape[0] + self.length_bucket - 1) // self.length_bucket, *shape[1:])
        return shape, item.dtype, item.device

    def merge(self, values: Sequence[Any], rows: Sequence[int], device: Any) -> Any:
        """Joins the lists."""
        return [item for value in values for item in value]


@dataclass(frozen=True)
class RowListEqual(ArgumentRole):
    """A list with a plain value per row, all equal: the module reads only the first."""

    def key(self, name: str, value: Any, num_rows: int, digests: Digests) -> Hashable:
        """Compares the value."""
        if value is None:
            return None
        fits = isinstance(value, list) and len(value) == num_rows
        check(fits, name, value, f"a list of {num_rows} items")
        forms = {freeze(name, item) for item in value}
        check(len(forms) == 1, name, value, "a list of equal items")
        return forms.pop()

    def merge(self, values: Sequence[Any], rows: Sequence[int], device: Any) -> Any:
        """Joins the lists."""
        return None if values[0] is None else [item for value in values for item in value]


@dataclass(frozen=True)
class Items(ArgumentRole):
    """A list or tuple of values that each have the same role, such as one tensor per block."""

    item: ArgumentRole

    def key(self, name: str, value: Any, num_rows: int, digests: Digests) -> Hashable:
        """Compares the type, the length and the items' keys."""
        if value is None:
            return None
        check(type(value) in (list, tuple), name, value, "a list or tuple")
        keys = (
            self.item.key(f"{name}[{index}]", item, num_rows, digests)
            for index, item in enumerate(value)
        )
        return type(value), tuple(keys)

    def merge(self, values: Sequence[Any], rows: Sequence[int], device: Any) -> Any:
        """Joins item by item, into a new list or tuple."""
        if values[0] is None:
            return None
        columns = zip(*values, strict=True)
        return type(values[0])(self.item.merge(column, rows, device) for column in columns)


@dataclass(frozen=True)
class Entries(ArgumentRole):
    """A dict whose entries have roles of their own; an entry without a role must be None."""

    roles: tuple[tuple[str, ArgumentRole], ...]

    def key(self, name: str, value: Any, num_rows: int, digests: Digests) -> Hashable:
        """Compares the names present and their keys."""
        if value is None:
            return None
        check(isinstance(value, Mapping), name, value, "a dict")
        roles = dict(self.roles)
        keys: list[Hashable] = []
        for entry in sorted(value, key=str):
            role = roles.get(entry)
            if role is None:
                check(value[entry] is None, f"{name}.{entry}", value[entry], "known to the schema")
                keys.append((entry, None))
            else:
                keys.append((entry, role.key(f"{name}.{entry}", value[entry], num_rows, digests)))
        return tuple(keys)

    def merge(self, values: Sequence[Any], rows: Sequence[int], device: Any) -> Any:
        """Joins entry by entry, into a new dict."""
        if values[0] is None:
            return None
        roles = dict(self.roles)
        merged = {}
        for entry in values[0]:
            column = [value[entry] for value in values]
            role = roles.get(entry)
            merged[entry] = None if role is None else role.merge(column, rows, device)
        return merged


@dataclass(frozen=True)
class Value(ArgumentRole):
    """A plain value (number, text, None; lists, tuples, dicts of them) compared by equality."""

    def key(self, name: str, value: Any, num_rows: int, digests: Digests) -> Hashable:
        """Compares the value and its type."""
        return freeze(name, value)


@dataclass(frozen=True)
class Exactly(ArgumentRole):
    """A plain value for which the output can be split; with any other the call runs alone."""

    value: Any

    def key(self, name: str, value: Any, num_rows: int, digests: Digests) -> Hashable:
        """Compares with the one value."""
        check(freeze(name, value) == freeze(name, self.value), name, value, repr(self.value))
        return None


@dataclass(frozen=True)
class Ignore(ArgumentRole):
    """An argument that the module does not read: any value, and left out of the merged call."""

    def key(self, name: str, value: Any, num_rows: int, digests: Digests) -> Hashable:
        """Compares nothing."""
        return None


def freeze(name: str, value: Any) -> Hashable:
    """Returns a hashable equal for equal plain values of equal types.

    Raises:
        UnbatchableError: The value holds something that equality does not settle, such as a tensor.
    """
    if value is None or isinstance(
        value, (bool, int, float, str, bytes, torch.dtype, torch.device)
    ):
        return type(value), value
    if type(value) in (list, tuple, torch.Size):
        return type(value), tuple(freeze(name, item) for item in value)
    if type(value) is dict:
        ordered = sorted(value, key=lambda entry: (type(entry).__name__, str(entry)))
        return dict, tuple(
            (freeze(name, entry), freeze(f"{name}.{entry}", value[entry])) for entry in ordered
        )
    raise UnbatchableError(f"argument {name!r} is {describe(value)}, not a plain value")
