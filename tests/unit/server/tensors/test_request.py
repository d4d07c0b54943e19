"""Reading and writing of tensors, compression and requests, without a server."""

from __future__ import annotations

import gzip
import json
import zlib
from typing import Any

import ml_dtypes
import numpy
import pytest

from truthgpt_serve.errors import RequestError
from truthgpt_serve.server.tensors.codec import OipExchange
from truthgpt_serve.server.tensors.compression import (
    accepted_coding,
    compress,
)
from truthgpt_serve.server.tensors.datatypes import (
    DATATYPES,
    numpy_dtype,
    read_binary,
    read_json,
    write_binary,
    write_json,
)
from truthgpt_serve.server.tensors.request import header_length, parse_request
from truthgpt_serve.server.tensors.response import encode_answer

MIB = 2**20


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


def test_every_cut_of_a_request_is_refused() -> None:
    tensors = [
        {"name": "a", "shape": [2], "datatype": "FP32", "parameters": {"binary_data_size": 8}},
        {"name": "b", "shape": [2], "datatype": "BYTES", "parameters": {"binary_data_size": 10}},
    ]
    head = json.dumps({"inputs": tensors}).encode()
    body = head + bytes(8) + b"\1\0\0\0x\1\0\0\0y"
    whole = parse_request(body, len(head))
    assert whole.inputs["b"].tolist() == [b"x", b"y"]
    for cut in range(len(body)):
        with pytest.raises(RequestError):
            parse_request(body[:cut], header_length(str(len(head)).encode(), cut))


def test_changed_bytes_never_do_more_than_be_refused() -> None:
    tensor = {"name": "a", "shape": [2, 3], "datatype": "INT16", "data": [1, 2, 3, 4, 5, 6]}
    body = json.dumps({"id": "7", "inputs": [tensor], "outputs": [{"name": "a"}]}).encode()
    random = numpy.random.default_rng(6)
    num_refused = 0
    for _ in range(3000):
        damaged = bytearray(body)
        for at in random.integers(0, len(body), 2):
            damaged[at] = random.choice(list(b'0123456789 ,"[]}:x\xff'))
        try:
            request = parse_request(bytes(damaged), len(damaged))
            encode_answer(request.inputs, request, "m")
        except RequestError:
            num_refused += 1
    assert 1000 < num_refused < 3000, "some changes do no harm"


def test_a_class_gets_arrays_of_its_own_each_time() -> None:
    tensor = {"name": "a", "shape": [2], "datatype": "FP32", "parameters": {"binary_data_size": 8}}
    head = json.dumps({"inputs": [tensor], "parameters": {"k": [1]}}).encode()
    head += b" " * (-len(head) % 4 + 1)  # so that the numbers begin at an odd address
    body = head + numpy.array([1, 2], "<f4").tobytes()
    request = parse_request(body, len(head), ("k",))
    assert not request.inputs["a"].flags.aligned
    exchange = OipExchange(request, "Class")
    for _ in range(2):
        inputs = exchange.prepare()
        assert inputs["a"].tolist() == [1, 2]
        assert inputs["a"].flags.aligned
        assert inputs["k"] == [1]
        inputs["a"] *= 2
        inputs["k"].append(2)


# -- compression


@pytest.mark.parametrize(
    ("header", "coding"),
    [
        (b"", ""),
        (b"identity", ""),
        (b"gzip, deflate, br", "gzip"),
        (b"deflate, gzip;q=0.5", "deflate"),
        (b"gzip;q=0, deflate;q=0.0", ""),
        (b"x-gzip", "gzip"),
        (b"GZIP ; q=1.0", "gzip"),
        (b"gzip;q=high", ""),
        (b"br;q=1, *", ""),
    ],
)
def test_what_a_client_accepts(header: bytes, coding: str) -> None:
    assert accepted_coding(header) == coding


@pytest.mark.parametrize(
    ("coding", "unpack"), [("gzip", gzip.decompress), ("deflate", zlib.decompress)]
)
def test_compressed_and_back(coding: str, unpack: Any) -> None:
    body = b"[1.0, 2.0]" * 10_000
    packed = compress(body, coding)
    assert packed is not None
    assert unpack(packed) == body
    assert len(packed) < len(body) / 10
    assert compress(numpy.random.default_rng(1).bytes(100_000), coding) is None
