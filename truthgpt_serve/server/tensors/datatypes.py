"""Tensors of the Open Inference Protocol, as bytes and as JSON, to numpy arrays and back.

A tensor of BYTES is an array of `object` that holds `bytes`.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from typing import Any

import msgspec
import numpy

from truthgpt_serve.errors import RequestError, ServerError
from truthgpt_serve.json_decoding import decode_json

NAMES = {
    "bool": "BOOL",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "float16": "FP16",
    "bfloat16": "BF16",
    "float32": "FP32",
    "float64": "FP64",
}
"""The protocol's name of each numeric type, by numpy's."""
_NUMPY = {name: dtype for dtype, name in NAMES.items()}
DATATYPES = (*_NUMPY, "BYTES")
_JSON_KINDS = {"BOOL": bool, "BYTES": str, **dict.fromkeys(("FP16", "BF16", "FP32", "FP64"), float)}
MAX_EXPONENTS = 10_000
"""Most numbers with an exponent that are read as the others: they may take a hundred times as long
(`json_decoding`)."""
MAX_RANK = 32
MAX_ELEMENTS = 2**40
"""Above anything that a body can hold; keeps the arithmetic of shapes small."""


def numpy_dtype(datatype: str) -> numpy.dtype[Any]:
    """Returns numpy's type of a data type of the protocol; `object` for BYTES.

    Raises:
        RequestError: There is no such type, or BF16 without the package `ml_dtypes`.
    """
    if datatype == "BYTES":
        return numpy.dtype(object)
    if datatype == "BF16":
        try:
            from ml_dtypes import bfloat16
        except ImportError:
            raise RequestError("BF16 needs the package `ml_dtypes` beside the model") from None
        dtype: numpy.dtype[Any] = numpy.dtype(bfloat16)
        return dtype
    if datatype not in _NUMPY:
        raise RequestError(
            f"{datatype[:40]!r} is not a data type; it is one of {', '.join(DATATYPES)}"
        )
    return numpy.dtype(_NUMPY[datatype])


def datatype_of(array: numpy.ndarray[Any, Any]) -> str | None:
    """Returns the protocol's data type of an array, or None where it has none."""
    return "BYTES" if array.dtype.kind in "OSU" else NAMES.get(array.dtype.name)


def count_elements(shape: Sequence[int]) -> int:
    """Returns the number of elements.

    Raises:
        RequestError: The shape cannot be: a negative axis, too many axes or elements.
    """
    if len(shape) > MAX_RANK:
        raise RequestError(f"the shape has {len(shape)} axes; {MAX_RANK} are the most")
    if any(size < 0 for size in shape):
        raise RequestError(f"the shape {list(shape)} has a negative axis")
    if math.prod(size for size in shape if size) > MAX_ELEMENTS:
        raise RequestError(f"the shape {list(shape)} has more elements than any body can hold")
    return math.prod(shape)


# -- bytes


def read_binary(datatype: str, shape: Sequence[int], data: memoryview) -> numpy.ndarray[Any, Any]:
    """Returns the array of a tensor's bytes: elements in C order, little-endian.

    An element of BYTES has its length in front, in 4 bytes. Numbers are not copied: the array can
    only be read, and begins at any address.

    Raises:
        RequestError: The bytes are not exactly those of the shape.
    """
    dtype, count = numpy_dtype(datatype), count_elements(shape)
    if datatype == "BYTES":
        return _object_array(_split_elements(data, count), shape)
    needed = count * dtype.itemsize
    if needed != len(data):
        raise RequestError(
            f"binary_data_size is {len(data)}, but shape {list(shape)} of {datatype} takes "
            f"{needed} bytes"
        )
    if datatype == "BOOL":
        flags = numpy.frombuffer(data, numpy.uint8)
        if flags.size and flags.max() > 1:
            raise RequestError("BOOL has a byte that is neither 0 nor 1")
    return numpy.frombuffer(data, dtype.newbyteorder("<")).reshape(tuple(shape))


def _split_elements(data: memoryview, count: int) -> list[bytes]:
    elements: list[bytes] = []
    at = 0
    while at < len(data):
        if len(elements) == count:
            raise RequestError(f"BYTES has {len(data) - at} bytes behind its {count} elements")
        if at + 4 > len(data):
            raise RequestError(f"the length of BYTES element {len(elements)} is cut off")
        [size] = struct.unpack_from("<I", data, at)
        at += 4
        if at + size > len(data):
            raise RequestError(
                f"BYTES element {len(elements)} says it has {size} bytes, but {len(data) - at} "
                "are left"
            )
        elements.append(bytes(data[at : at + size]))
        at += size
    if len(elements) != count:
        raise RequestError(f"BYTES has {len(elements)} elements, but the shape takes {count}")
    return elements


def write_binary(array: numpy.ndarray[Any, Any]) -> bytes:
    """Returns a tensor's bytes; the opposite of `read_binary`."""
    if array.dtype.kind in "OSU":
        parts = [_to_bytes(item) for item in array.ravel()]
        return b"".join(chain.from_iterable((struct.pack("<I", len(x)), x) for x in parts))
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def _to_bytes(item: Any) -> bytes:
    if isinstance(item, bytes | bytearray):
        return bytes(item)
    if isinstance(item, str):
        return item.encode("utf-8", "replace")
    raise ServerError(f"an array of objects holds a {type(item).__name__}, not bytes or str")


def _object_array(elements: list[bytes], shape: Sequence[int]) -> numpy.ndarray[Any, Any]:
    array = numpy.empty(len(elements), dtype=object)
    array[:] = elements
    return array.reshape(tuple(shape))


# -- JSON


@lru_cache(maxsize=256)
def _decoder(kind: type, depth: int) -> msgspec.json.Decoder[Any]:
    form: Any = kind
    for _ in range(depth):
        form = list[form]
    return msgspec.json.Decoder(form)


def read_json(datatype: str, shape: Sequence[int], data: bytes) -> numpy.ndarray[Any, Any]:
    """Returns the array of a tensor's JSON: a list of its elements in C order, or lists of lists.

    Raises:
        RequestError: An element does not fit the type, or the lists do not fit the shape.
    """
    dtype, count = numpy_dtype(datatype), count_elements(shape)
    kind = _JSON_KINDS.get(datatype, int)
    nested = len(shape) > 1 and data[:1] == b"[" and data[1:].lstrip()[:1] == b"["
    try:
        value = _read_lists(kind, len(shape) if nested else 1, data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(f"data does not fit {datatype}: {error}") from None
    elements = _flatten(value, shape) if nested else value
    if len(elements) != count:
        raise RequestError(
            f"data has {len(elements)} elements, but shape {list(shape)} takes {count}"
        )
    if datatype == "BYTES":
        return _object_array([_utf8(item) for item in elements], shape)
    return _numbers(elements, datatype, dtype).reshape(tuple(shape))


def _read_lists(kind: type, depth: int, data: bytes) -> Any:
    if kind is float and data.count(b"e") + data.count(b"E") > MAX_EXPONENTS:
        value = decode_json(data)
        rows = [value]
        for _ in range(depth):
            if not all(isinstance(row, list) for row in rows):
                break
            rows = list(chain.from_iterable(rows))
        else:
            if {*map(type, rows)} <= {float, int}:
                return value
    return _decoder(kind, depth).decode(data)  # it says what is wrong, too


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise RequestError("data has a text with half a surrogate pair") from None


def _flatten(rows: list[Any], shape: Sequence[int]) -> list[Any]:
    rows = [rows]
    for axis, size in enumerate(shape):
        for row in rows:
            if len(row) != size:
                raise RequestError(
                    f"data has a list of {len(row)} on axis {axis}, but shape {list(shape)} "
                    f"takes {size}"
                )
        rows = list(chain.from_iterable(rows))
    return rows


def _numbers(
    elements: list[Any], datatype: str, dtype: numpy.dtype[Any]
) -> numpy.ndarray[Any, Any]:
    if _JSON_KINDS.get(datatype) is not float:
        try:
            return numpy.array(elements, dtype=dtype)
        except OverflowError as error:
            raise RequestError(f"data does not fit {datatype}: {error}") from None
    wide = numpy.array(elements, dtype=numpy.float64)
    with numpy.errstate(over="ignore"):
        array = wide.astype(dtype)
    if not numpy.isfinite(array).all():
        raise RequestError(f"data has a number too large for {datatype}")
    return array


def write_json(array: numpy.ndarray[Any, Any]) -> list[Any]:
    """Returns a tensor's elements in C order, as JSON can carry them.

    Raises:
        RequestError: JSON cannot carry one: not finite, or bytes that are not UTF-8.
    """
    if array.dtype.kind in "OSU":
        try:
            return [_to_bytes(item).decode() for item in array.ravel()]
        except UnicodeDecodeError:
            raise RequestError(
                "has bytes that are not UTF-8, which JSON cannot represent: ask for binary_data"
            ) from None
    if array.dtype.name == "bfloat16":
        array = array.astype(numpy.float32)
    if array.dtype.kind == "f" and not numpy.isfinite(array).all():
        raise RequestError(
            "has numbers that are not finite, which JSON cannot represent: ask for binary_data"
        )
    elements: list[Any] = array.ravel().tolist()
    return elements
