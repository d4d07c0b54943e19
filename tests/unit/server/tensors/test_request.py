"""Reading and writing of tensors, compression and requests, without a server."""

from __future__ import annotations

import json
import time

import numpy
import pytest

from truthgpt_serve.errors import RequestError
from truthgpt_serve.server.tensors.codec import OipCodec
from truthgpt_serve.server.tensors.request import header_length, parse_request
from truthgpt_serve.server.tensors.response import encode_answer

MIB = 2**20


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
    codec = OipCodec(request, "Class")
    for _ in range(2):
        inputs = codec.inputs()
        assert inputs["a"].tolist() == [1, 2]
        assert inputs["a"].flags.aligned
        assert inputs["k"] == [1]
        inputs["a"] *= 2
        inputs["k"].append(2)


def test_a_request_with_very_many_outputs_is_refused_at_once() -> None:
    outputs = [{"name": f"o{number}"} for number in range(40_000)]
    body = json.dumps({"inputs": [], "outputs": outputs}).encode()
    began = time.perf_counter()
    with pytest.raises(RequestError, match=r"Expected `array` of length <= 4096"):
        parse_request(body, len(body))
    assert time.perf_counter() - began < 2, "it took 12 s"


@pytest.mark.parametrize("name", ["timeout", "priority"])
def test_a_number_beyond_64_bits_is_refused(name: str) -> None:
    body = b'{"inputs": [], "parameters": {"%b": %b}}' % (name.encode(), b"9" * 400)
    with pytest.raises(RequestError, match="at most 64 bits"):
        parse_request(body, len(body))


def test_errors_do_not_repeat_long_names() -> None:
    tensor = {"name": "n" * 10_000, "shape": [1], "datatype": "FP32", "data": []}
    twice = {"inputs": [], "outputs": [{"name": "n" * 10_000}] * 2}
    for request in ({"inputs": [tensor]}, {"inputs": [tensor] * 2}, twice):
        body = json.dumps(request).encode()
        with pytest.raises(RequestError) as caught:
            parse_request(body, len(body))
        assert len(caught.value.message) < 200
        assert len(caught.value.param or "") < 200
