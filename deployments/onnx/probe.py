"""The smallest useful ONNX file, written byte by byte: probing must not need the package onnx.

The format: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto3 as protocol buffers.
"""

from __future__ import annotations

IR_VERSION = 8
OPERATORS_VERSION = 13
_FLOAT = 1


def _number(field: int, value: int) -> bytes:
    return bytes((field << 3, value))


def _bytes(field: int, *parts: bytes) -> bytes:
    data = b"".join(parts)
    if len(data) > 127:
        raise ValueError(f"a field of {len(data)} bytes does not fit one length byte")
    return bytes((field << 3 | 2, len(data))) + data


def probe_model() -> bytes:
    """Returns a graph that multiplies the matrix `x`, float32 [2, 2], with itself into `y`."""
    axis = _bytes(1, _number(1, 2))
    kind = _bytes(2, _bytes(1, _number(1, _FLOAT), _bytes(2, axis, axis)))
    graph = _bytes(
        7,
        _bytes(1, _bytes(1, b"x"), _bytes(1, b"x"), _bytes(2, b"y"), _bytes(4, b"MatMul")),
        _bytes(2, b"probe"),
        _bytes(11, _bytes(1, b"x"), kind),
        _bytes(12, _bytes(1, b"y"), kind),
    )
    operators = _bytes(8, _bytes(1, b""), _number(2, OPERATORS_VERSION))
    return _number(1, IR_VERSION) + graph + operators
