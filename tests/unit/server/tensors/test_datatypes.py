"""Elements of tensors as bytes and as JSON."""

from __future__ import annotations

import json
from typing import Any

import ml_dtypes
import numpy
import pytest

from truthgpt_serve.errors import RequestError
from truthgpt_serve.server.tensors.datatypes import (
    DATATYPES,
    numpy_dtype,
    read_binary,
    read_json,
    write_binary,
    write_json,
)


def random_array(datatype: str, shape: tuple[int, ...], seed: int) -> Any:
    random = numpy.random.default_rng(seed)
    if datatype == "BYTES":
        texts = numpy.empty(shape, dtype=object)
        for at in range(texts.size):
            texts.flat[at] = random.bytes(int(random.integers(0, 9)))
        return texts
    dtype = numpy_dtype(datatype)
    if dtype.kind == "b":
        return random.integers(0, 2, shape).astype(bool)
    if dtype.kind in "iu":
        limits = numpy.iinfo(dtype)
        return random.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)
    return random.standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("datatype", DATATYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 4), (2, 3, 4)])
def test_bytes_and_back(datatype: str, shape: tuple[int, ...]) -> None:
    for seed in range(5):
        array = random_array(datatype, shape, seed)
        data = write_binary(array)
        back = read_binary(datatype, shape, memoryview(data))
        assert back.dtype == array.dtype
        assert back.shape == shape
        assert numpy.array_equal(back, array)
        assert datatype == "BYTES" or not array.size or not back.flags.owndata, "not copied"


@pytest.mark.parametrize("datatype", DATATYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 4), (2, 3, 4)])
def test_json_and_back(datatype: str, shape: tuple[int, ...]) -> None:
    for seed in range(5):
        array = random_array(datatype, shape, seed)
        if datatype == "BYTES":
            array = numpy.vectorize(lambda item: item.hex().encode(), otypes=[object])(array)
        flat = json.dumps(write_json(array)).encode()
        assert numpy.array_equal(read_json(datatype, shape, flat), array)
        if len(shape) > 1 and array.size:
            elements = numpy.array(write_json(array), dtype=object)
            rows = json.dumps(elements.reshape(shape).tolist()).encode()
            assert numpy.array_equal(read_json(datatype, shape, rows), array)


def test_the_bytes_are_the_protocols() -> None:
    numbers = numpy.array([1, -2], ">i2")
    assert write_binary(numbers) == b"\x01\x00\xfe\xff"
    assert write_binary(numpy.array([[1, 2], [3, 4]], "u1").T) == b"\x01\x03\x02\x04"
    assert write_binary(numpy.array(["é", b"x"], object)) == b"\2\0\0\0\xc3\xa9\1\0\0\0x"
    assert write_binary(numpy.array(["ab"])) == b"\2\0\0\0ab"
    half = numpy.array([1.0, -2.0], ml_dtypes.bfloat16)
    assert write_binary(half) == b"\x80\x3f\x00\xc0"
    assert read_binary("BF16", [2], memoryview(b"\x80\x3f\x00\xc0")).tolist() == [1.0, -2.0]


def test_numbers_as_json_writes_them() -> None:
    assert read_json("FP32", [2], b" [1, 2]").tolist() == [1.0, 2.0]
    for datatype, text in [("INT64", "9223372036854775807"), ("UINT64", "18446744073709551615")]:
        assert read_json(datatype, [1], f"[{text}]".encode()).tolist() == [int(text)]


@pytest.mark.parametrize(
    ("datatype", "data"),
    [("INT64", b"[9223372036854775808]"), ("UINT64", b"[18446744073709551616]")],
)
def test_a_whole_number_beyond_its_type_is_refused(datatype: str, data: bytes) -> None:
    with pytest.raises(RequestError, match=f"data does not fit {datatype}: "):
        read_json(datatype, [1], data)
