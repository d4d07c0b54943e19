"""What a model's inputs and outputs look like, and whether a request's arrays do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy

from truthgpt_serve.errors import ConfigError, Fault, RequestError
from truthgpt_serve.wording import MAX_SHOWN_CHARS, shown

Axis = int | str | None
"""The size of an axis, the name of a free one, or None for a free one without a name."""
Array = numpy.ndarray[Any, numpy.dtype[Any]]
Arrays = dict[str, Array]

TYPES = {
    "tensor(bool)": ("bool", "BOOL"),
    "tensor(int8)": ("int8", "INT8"),
    "tensor(int16)": ("int16", "INT16"),
    "tensor(int32)": ("int32", "INT32"),
    "tensor(int64)": ("int64", "INT64"),
    "tensor(uint8)": ("uint8", "UINT8"),
    "tensor(uint16)": ("uint16", "UINT16"),
    "tensor(uint32)": ("uint32", "UINT32"),
    "tensor(uint64)": ("uint64", "UINT64"),
    "tensor(float16)": ("float16", "FP16"),
    "tensor(float)": ("float32", "FP32"),
    "tensor(double)": ("float64", "FP64"),
    "tensor(string)": ("object", "BYTES"),
}
"""ONNX Runtime's names of types: numpy's name, and the Open Inference Protocol's."""
_CONVERTIBLE = {"b": "b", "i": "iuf", "u": "iuf", "f": "f", "U": "O", "S": "O", "O": "O"}
"""Which kinds of number a list of each kind may become."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input or output of the graph.

    Attributes:
        name: Its name.
        dtype: numpy's name of its type.
        datatype: The Open Inference Protocol's.
        axes: The size or the name of each axis; None where the graph does not say, which for ONNX
            Runtime is the same as a scalar.
    """

    name: str
    dtype: str
    datatype: str
    axes: tuple[Axis, ...] | None

    @property
    def first(self) -> Axis:
        """The first axis; 1, so no free one, where there is none or the rank is unknown."""
        return self.axes[0] if self.axes else 1

    def describe(self) -> str:
        """Returns type and shape as a message shows them, such as `float32 [batch, 3]`."""
        if self.axes is None:
            return f"{self.dtype} of any shape"
        axes = ("any" if axis is None else str(axis) for axis in self.axes)
        return f"{self.dtype} [{', '.join(axes)}]"

    def metadata(self) -> dict[str, Any]:
        """Returns the tensor as the Open Inference Protocol describes it; -1 is a free axis."""
        axes = self.axes or ()
        shape = [axis if isinstance(axis, int) else -1 for axis in axes]
        return {"name": self.name, "datatype": self.datatype, "shape": shape}


def create_tensor(name: str, kind: str, shape: Sequence[Any], place: str) -> Tensor:
    """Returns the description of an input or output.

    Args:
        name: Its name.
        kind: ONNX Runtime's name of its type.
        shape: Sizes, names and None; empty for a scalar and for an unknown rank.
        place: The file, for the error.

    Raises:
        ConfigError: It is no tensor, or of a type that has no place in numpy.
    """
    if kind not in TYPES:
        message = f"{name!r} is {kind}, which cannot travel"
        fix = "export it as a tensor of another type (for scikit-learn: with zipmap=False)"
        raise ConfigError([Fault(place, message, fix)])
    dtype, datatype = TYPES[kind]
    axes = None
    if shape:
        axes = tuple(axis if _is_axis(axis) else None for axis in shape)
    return Tensor(name, dtype, datatype, axes)


def _is_axis(axis: Any) -> bool:
    return axis >= 0 if isinstance(axis, int) else isinstance(axis, str) and axis != ""


def common_axis(inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> bool:
    """Whether all tensors have one and the same free first axis, so that requests can be joined.

    A free axis without a name may be the same as any other.
    """
    firsts = {tensor.first for tensor in (*inputs, *outputs)} - {None}
    fixed = any(isinstance(axis, int) for axis in firsts)
    return bool(inputs) and not fixed and len(firsts) <= 1


def check_inputs(given: Mapping[str, Any], expected: Sequence[Tensor]) -> Arrays:
    """Returns the arrays that the session takes.

    Lists and numbers become arrays of the expected type; texts and bytes become `str`.

    Raises:
        RequestError: A name, type, rank or size does not fit; the message names the input, what is
            expected and what was given.
    """
    names = [tensor.name for tensor in expected]
    known = ", ".join(f"{tensor.name}: {tensor.describe()}" for tensor in expected)
    for name in given:
        if name not in names:
            raise _wrong(str(name), f"is not one of the model's inputs; it has {known}")
    free: dict[str, tuple[int, str]] = {}
    arrays: Arrays = {}
    for tensor in expected:
        if tensor.name not in given:
            raise _wrong(tensor.name, f"is missing; the model expects {known}")
        array = _to_array(given[tensor.name], tensor)
        _check_shape(array, tensor, free)
        arrays[tensor.name] = array
    return arrays


def _wrong(name: str, message: str) -> RequestError:
    param = f"inputs.{name[:MAX_SHOWN_CHARS]}"
    return RequestError(f"input {shown(name)} {message}", param=param)


def _expects(tensor: Tensor, given: str) -> RequestError:
    return _wrong(tensor.name, f"expects {tensor.describe()}, given {given}")


def _to_array(value: Any, tensor: Tensor) -> Array:
    if isinstance(value, numpy.ndarray):
        array: Array = value
    elif isinstance(value, list | tuple | bool | int | float | str | bytes | numpy.generic):
        array = _listed(value, tensor)
    else:
        raise _expects(tensor, f"a {type(value).__name__}")
    if tensor.dtype == "object":
        return _texts(array, tensor)
    if array.dtype.name != tensor.dtype:
        raise _expects(tensor, f"{array.dtype.name} {list(array.shape)}")
    return array


def _listed(value: Any, tensor: Tensor) -> Array:
    """Returns lists as an array; texts as objects, each of its own length.

    numpy's own type of texts takes as much memory for each of them as for the longest.
    """
    try:
        items = numpy.asarray(value, dtype=object)
        if not {*map(type, items.flat)}.isdisjoint((str, bytes)):
            if tensor.dtype == "object":
                return items
            raise _expects(tensor, "a list of texts")
        array = numpy.asarray(value)
    except (ValueError, OverflowError):
        raise _expects(tensor, "lists of different lengths") from None
    wanted = numpy.dtype(tensor.dtype)
    if array.size == 0 and array.dtype.kind == "f":
        return array.astype(wanted)
    if wanted.kind not in _CONVERTIBLE.get(array.dtype.kind, ""):
        raise _expects(tensor, f"a list of {array.dtype.name}")
    if wanted.kind in "iu" and array.size:
        limits = numpy.iinfo(wanted)
        if int(array.min()) < limits.min or int(array.max()) > limits.max:
            raise _expects(tensor, "a list with a number out of range")
    return array.astype(wanted)


def _texts(array: Array, tensor: Tensor) -> Array:
    if array.dtype.kind not in "OSU":
        raise _expects(tensor, f"{array.dtype.name} {list(array.shape)}")
    texts = numpy.empty(array.shape, dtype=object)
    for at, item in enumerate(array.flat):
        texts.flat[at] = _text(item, tensor)
    return texts


def _text(item: Any, tensor: Tensor) -> str:
    if isinstance(item, bytes):
        try:
            return item.decode()
        except UnicodeDecodeError:
            raise _wrong(tensor.name, "expects texts in UTF-8, given other bytes") from None
    if not isinstance(item, str):
        raise _wrong(tensor.name, f"expects texts, given a {type(item).__name__}")
    return item


def _check_shape(array: Array, tensor: Tensor, free: dict[str, tuple[int, str]]) -> None:
    """Checks rank and sizes; `free` holds what each named axis was, and in which input."""
    if tensor.axes is None:
        return
    given = f"{tensor.dtype} {list(array.shape)}"
    if array.ndim != len(tensor.axes):
        raise _expects(tensor, given)
    for axis, size in zip(tensor.axes, array.shape, strict=True):
        if isinstance(axis, int) and axis != size:
            raise _expects(tensor, given)
        if isinstance(axis, str):
            other, where = free.setdefault(axis, (size, tensor.name))
            if other != size:
                raise _wrong(
                    tensor.name,
                    f"expects {tensor.describe()}, given {given}: axis {axis!r} is {other} in "
                    f"input {where!r}",
                )
