"""Bad inference requests: exact status and message, in the protocol's form, on both ways."""

from __future__ import annotations

import gzip
import http.client
import json
import logging
import random
import struct
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

import httpx
import pytest

from tests.support.oip_service import MAX_BODY_BYTES, PLAIN, Service, serving
from tests.support.servers import serve_asgi
from truthgpt_serve.server import create_app

INFER = "/v2/models/mirror/infer"
SCALER = "/v2/models/scaler/infer"
LENGTH = "Inference-Header-Content-Length"
TYPES = (
    "BOOL, INT8, INT16, INT32, INT64, UINT8, UINT16, UINT32, UINT64, FP16, BF16, FP32, FP64, BYTES"
)


class Bad(NamedTuple):
    """A request and the error that it must get."""

    body: Any
    status: int
    message: str
    path: str = INFER
    method: str = "POST"
    headers: dict[str, str] | None = None
    tail: bytes | None = None
    """Bytes behind the JSON, whose length then goes into the header."""


def x(**fields: Any) -> dict[str, Any]:
    """Returns one input of two numbers; a field that is None is left out."""
    tensor = {"name": "x", "shape": [2], "datatype": "FP32", "data": [1, 2], **fields}
    return {"inputs": [{key: value for key, value in tensor.items() if value is not None}]}


def raw(size: int, **fields: Any) -> dict[str, Any]:
    return x(data=None, parameters={"binary_data_size": size}, **fields)


def with_parameters(path: str = INFER, **parameters: Any) -> dict[str, Any]:
    return {**x(), "parameters": parameters}


def element(data: bytes) -> bytes:
    return struct.pack("<I", len(data)) + data


def packed(body: Any) -> bytes:
    return gzip.compress(json.dumps(body).encode())


BOMB = gzip.compress(random.Random(1).randbytes(MAX_BODY_BYTES // 4) + b"[" * (2 * MAX_BODY_BYTES))
"""Not too small to become more than either limit."""
GZIP = {"content-encoding": "gzip"}
NOT_GZIP = "the body is not valid gzip, its content-encoding: "
NOT_ONE = "the request is not an inference request: "

JSON: dict[str, Bad] = {
    "empty": Bad(b"", 400, "the request has no body; send a JSON object with `inputs`"),
    "half": Bad(b'{"inputs": [', 400, "the JSON is not valid: Input data was truncated"),
    "text": Bad(
        b"hello", 400,
        "the JSON is not valid: JSON is malformed: invalid character (byte 0)",
    ),
    "text behind": Bad(
        b'{"inputs": []} x', 400,
        "the JSON is not valid: JSON is malformed: trailing characters (byte 16)",
    ),
    "no UTF-8": Bad(
        b'{"id": "\xff", "inputs": []}', 400,
        "the JSON is not valid: 'utf-8' codec can't decode byte 0xff in position 0: invalid start "
        "byte",
    ),
    "deep": Bad(
        b'{"inputs": [], "parameters": {"timeout": ' + b"[" * 5000 + b"]" * 5000 + b"}}", 400,
        "the JSON is not valid: it is nested too deeply",
    ),
    "array": Bad([1], 400, NOT_ONE + "Expected `object`, got `array`"),
    "no inputs": Bad({"id": "1"}, 400, NOT_ONE + "Object missing required field `inputs`"),
    "inputs are no list": Bad(
        {"inputs": {}}, 400, NOT_ONE + "Expected `array`, got `object` - at `$.inputs`"
    ),
    "unknown field": Bad(
        {"inputs": [], "stream": False}, 400,
        NOT_ONE + "Object contains unknown field `stream`",
    ),
    "unknown field of an input": Bad(
        x(dtype="FP32"), 400,
        NOT_ONE + "Object contains unknown field `dtype` - at `$.inputs[0]`",
    ),
    "no name": Bad(
        x(name=None), 400,
        NOT_ONE + "Object missing required field `name` - at `$.inputs[0]`",
    ),
    "no shape": Bad(
        x(shape=None), 400,
        NOT_ONE + "Object missing required field `shape` - at `$.inputs[0]`",
    ),
    "no datatype": Bad(
        x(datatype=None), 400,
        NOT_ONE + "Object missing required field `datatype` - at `$.inputs[0]`",
    ),
    "shape is a number": Bad(
        x(shape=2), 400,
        NOT_ONE + "Expected `array`, got `int` - at `$.inputs[0].shape`",
    ),
    "shape has a fraction": Bad(
        x(shape=[1.5]), 400,
        NOT_ONE + "Expected `int`, got `float` - at `$.inputs[0].shape[0]`",
    ),
    "id is a number": Bad(
        {**x(), "id": 7}, 400, NOT_ONE + "Expected `str | null`, got `int` - at `$.id`"
    ),
    "id is long": Bad({**x(), "id": "i" * 513}, 400, "`id` is longer than 512 characters"),
}  # fmt: skip

TENSORS: dict[str, Bad] = {
    "unknown type": Bad(
        x(datatype="FP8"), 400, f"input 'x': 'FP8' is not a data type; it is one of {TYPES}"
    ),
    "negative axis": Bad(x(shape=[-1]), 400, "input 'x': the shape [-1] has a negative axis"),
    "many axes": Bad(x(shape=[1] * 33), 400, "input 'x': the shape has 33 axes; 32 are the most"),
    "huge": Bad(
        x(shape=[2**40, 2**40], data=[]), 400,
        "input 'x': the shape [1099511627776, 1099511627776] has more elements than any body can "
        "hold",
    ),
    "huge but for a zero": Bad(
        x(shape=[0, 2**62], data=[]), 400,
        "input 'x': the shape [0, 4611686018427387904] has more elements than any body can hold",
    ),
    "too few elements": Bad(
        x(data=[1]), 400, "input 'x': data has 1 elements, but shape [2] takes 2"
    ),
    "too many elements": Bad(
        x(data=[1, 2, 3]), 400, "input 'x': data has 3 elements, but shape [2] takes 2"
    ),
    "ragged": Bad(
        x(shape=[2, 2], data=[[1, 2], [3]]), 400,
        "input 'x': data has a list of 1 on axis 1, but shape [2, 2] takes 2",
    ),
    "nested otherwise": Bad(
        x(shape=[2, 2], data=[[1, 2, 3, 4]]), 400,
        "input 'x': data has a list of 1 on axis 0, but shape [2, 2] takes 2",
    ),
    "data is a number": Bad(
        x(data=3), 400, "input 'x': data does not fit FP32: Expected `array`, got `int`"
    ),
    "text among numbers": Bad(
        x(data=[1, "2"]), 400,
        "input 'x': data does not fit FP32: Expected `float`, got `str` - at `$[1]`",
    ),
    "fraction among whole numbers": Bad(
        x(datatype="INT32", data=[1, 2.5]), 400,
        "input 'x': data does not fit INT32: Expected `int`, got `float` - at `$[1]`",
    ),
    "number among flags": Bad(
        x(datatype="BOOL", data=[True, 1]), 400,
        "input 'x': data does not fit BOOL: Expected `bool`, got `int` - at `$[1]`",
    ),
    "out of range": Bad(
        x(datatype="INT8", data=[1, 128]), 400,
        "input 'x': data does not fit INT8: Python integer 128 out of bounds for int8",
    ),
    "negative unsigned": Bad(
        x(datatype="UINT8", data=[1, -1]), 400,
        "input 'x': data does not fit UINT8: Python integer -1 out of bounds for uint8",
    ),
    "too large for half": Bad(
        x(datatype="FP16", data=[1, 1e6]), 400,
        "input 'x': data has a number too large for FP16",
    ),
    "no data": Bad(
        x(data=None), 400,
        "input 'x': has neither `data` nor the parameter `binary_data_size`",
    ),
    "data twice": Bad(
        x(parameters={"binary_data_size": 8}), 400,
        "input 'x': has both `data` and the parameter `binary_data_size`", tail=bytes(8),
    ),
    "input twice": Bad(
        {"inputs": x()["inputs"] * 2}, 400, "input 'x' is given twice",
    ),
    "output twice": Bad(
        {**x(), "outputs": [{"name": "x"}] * 2}, 400, "output 'x' is asked for twice",
    ),
    "unknown output": Bad(
        {**x(), "outputs": [{"name": "y"}]}, 400, "the model has no output 'y'; it has x",
    ),
    "unknown output of one that says what it has": Bad(
        {**x(), "outputs": [{"name": "x"}]}, 400,
        "the model has no output 'x'; it has y", path=SCALER,
    ),
}  # fmt: skip

BINARY: dict[str, Bad] = {
    "header length is a word": Bad(
        raw(8), 400, "Inference-Header-Content-Length must be a number, not 'many'",
        headers={LENGTH: "many"},
    ),
    "header length is negative": Bad(
        raw(8), 400, "Inference-Header-Content-Length must be a number, not '-1'",
        headers={LENGTH: "-1"},
    ),
    "header length is nothing": Bad(
        b"x" * 9, 400, "Inference-Header-Content-Length is 0, but the body has 9 bytes",
        headers={LENGTH: "0"},
    ),
    "header length is too long": Bad(
        b"x" * 9, 400, "Inference-Header-Content-Length is 10, but the body has 9 bytes",
        headers={LENGTH: "10"},
    ),
    "header length is too short": Bad(
        b'{"inputs": []}', 400, "the JSON is not valid: Input data was truncated",
        headers={LENGTH: "5"},
    ),
    "bytes are missing": Bad(
        raw(8), 400,
        "the body has 7 bytes behind its JSON, but the inputs' binary_data_size adds up to 8",
        tail=bytes(7),
    ),
    "bytes are too many": Bad(
        raw(8), 400,
        "the body has 9 bytes behind its JSON, but the inputs' binary_data_size adds up to 8",
        tail=bytes(9),
    ),
    "bytes without a header length": Bad(
        raw(8), 400,
        "the body has 0 bytes behind its JSON, but the inputs' binary_data_size adds up to 8",
    ),
    "size does not fit the shape": Bad(
        raw(6), 400,
        "input 'x': binary_data_size is 6, but shape [2] of FP32 takes 8 bytes", tail=bytes(6),
    ),
    "size is negative": Bad(
        raw(-8), 400,
        "input 'x': parameter `binary_data_size` must be a whole number from 0", tail=bytes(8),
    ),
    "size is a flag": Bad(
        raw(True), 400, "input 'x': parameter `binary_data_size` must be a whole number from 0",
    ),
    "flag of two": Bad(
        raw(2, datatype="BOOL"), 400, "input 'x': BOOL has a byte that is neither 0 nor 1",
        tail=b"\1\2",
    ),
    "texts are too few": Bad(
        raw(5, datatype="BYTES"), 400, "input 'x': BYTES has 1 elements, but the shape takes 2",
        tail=element(b"a"),
    ),
    "texts are too many": Bad(
        raw(15, datatype="BYTES"), 400, "input 'x': BYTES has 5 bytes behind its 2 elements",
        tail=element(b"a") * 3,
    ),
    "text is cut off": Bad(
        raw(7, datatype="BYTES"), 400,
        "input 'x': BYTES element 0 says it has 9 bytes, but 3 are left",
        tail=struct.pack("<I", 9) + b"abc",
    ),
    "length of a text is cut off": Bad(
        raw(8, datatype="BYTES"), 400, "input 'x': the length of BYTES element 1 is cut off",
        tail=element(b"a") + b"\1\0\0",
    ),
}  # fmt: skip

EXTENSIONS: dict[str, Bad] = {
    "sequence": Bad(
        with_parameters(sequence_id=3), 400,
        "parameter `sequence_id` belongs to the sequence extension, which is not here",
    ),
    "shared memory": Bad(
        x(data=None, parameters={"shared_memory_region": "r"}), 400,
        "input 'x': parameter `shared_memory_region` belongs to the shared memory extension, "
        "which is not here",
    ),
    "classification": Bad(
        {**x(), "outputs": [{"name": "x", "parameters": {"classification": 3}}]}, 400,
        "output 'x': parameter `classification` belongs to the classification extension, which is "
        "not here",
    ),
    "priority": Bad(
        with_parameters(priority=1), 400, "parameter `priority`: requests have no priorities here",
    ),
    "unknown parameter": Bad(
        with_parameters(factor=3), 400,
        "parameter `factor` is not known; it takes binary_data_output, timeout, priority",
    ),
    "unknown parameter of one that takes some": Bad(
        with_parameters(faktor=3), 400,
        "parameter `faktor` is not known; it takes binary_data_output, timeout, priority, factor",
        path=SCALER,
    ),
    "unknown parameter of an output": Bad(
        {**x(), "outputs": [{"name": "x", "parameters": {"binary": True}}]}, 400,
        "output 'x': parameter `binary` is not known; it takes binary_data",
    ),
    "binary_data is a number": Bad(
        {**x(), "outputs": [{"name": "x", "parameters": {"binary_data": 1}}]}, 400,
        "output 'x': parameter `binary_data` must be true or false",
    ),
    "binary_data_output is a word": Bad(
        with_parameters(binary_data_output="yes"), 400,
        "parameter `binary_data_output` must be true or false",
    ),
    "timeout is negative": Bad(
        with_parameters(timeout=-1), 400, "parameter `timeout` must be a whole number from 0",
    ),
    "time is over": Bad(
        with_parameters(factor="slow", timeout=100_000), 504,
        "the model did not finish within 0.1 s, its time limit", path=SCALER,
    ),
}  # fmt: skip

COMPRESSION: dict[str, Bad] = {
    "unknown": Bad(
        x(), 415,
        "the body has content-encoding 'br': send it with one of gzip, deflate, zstd, or without "
        "compression",
        headers={"content-encoding": "br"},
    ),
    "two": Bad(
        x(), 415,
        "the body has content-encoding 'gzip, gzip': send it with one of gzip, deflate, zstd, or "
        "without compression",
        headers={"content-encoding": "gzip, gzip"},
    ),
    "none of it": Bad(
        x(), 400,
        NOT_GZIP + "Error -3 while decompressing data: incorrect header check",
        headers=GZIP,
    ),
    "cut off": Bad(
        packed(x())[:-4], 400, NOT_GZIP + "it is cut off", headers=GZIP,
    ),
    "empty and compressed": Bad(
        b"", 400, NOT_GZIP + "it is cut off", headers=GZIP,
    ),
    "bytes behind": Bad(
        packed(x()) + b"abc", 400, "the body has 3 bytes behind the end of its gzip", headers=GZIP,
    ),
    "damaged": Bad(
        packed(x())[:-8] + bytes(8), 400,
        NOT_GZIP + "Error -3 while decompressing data: incorrect data check",
        headers=GZIP,
    ),
    "raw deflate": Bad(
        zlib.compress(b"{}", wbits=-15), 400,
        "the body is not valid deflate, its content-encoding: Error -3 while decompressing data: "
        "incorrect header check",
        headers={"content-encoding": "deflate"},
    ),
    "too long": Bad(
        bytes(MAX_BODY_BYTES + 1), 413,
        "the request body is larger than 4194304 bytes, the limit that "
        "`serving.max_body_bytes` sets",
    ),
}  # fmt: skip


def fails(factor: str, status: int, message: str, **others: Any) -> Bad:
    body = {**with_parameters(factor=factor), **others}
    return Bad(body, status, message, path=SCALER, headers={"x-request-id": "bad-7"})


CLASS: dict[str, Bad] = {
    "refuses": fails("refuse", 400, "`factor` is no number"),
    "fails": fails(
        "fail", 500,
        "the model 'scaler' failed; its log has the cause under request id bad-7",
    ),
    "list": fails(
        "list", 500,
        "Scaler.infer returned list; a tensor model returns a dict of output name to array",
    ),
    "complex": fails(
        "complex", 500,
        "Scaler.infer: output 'y' has dtype complex128, which the Open Inference Protocol does not "
        "have; it has bool, int8, int16, int32, int64, uint8, uint16, uint32, uint64, float16, "
        "bfloat16, float32, float64, bytes",
    ),
    "ragged": fails(
        "ragged", 500,
        "Scaler.infer: output 'y' is not an array: setting an array element with a sequence. The "
        "requested array has an inhomogeneous shape after 1 dimensions. The detected shape was "
        "(2,) + inhomogeneous part.",
    ),
    "objects": fails(
        "objects", 500, "an array of objects holds a dict, not bytes or str",
    ),
    "not finite": fails(
        "nan", 400,
        "output 'y' has numbers that are not finite, which JSON cannot represent: ask for "
        "binary_data",
    ),
    "no text": fails(
        "bytes", 400,
        "output 'y' has bytes that are not UTF-8, which JSON cannot represent: ask for binary_data",
    ),
    "another output than it says": fails(
        "other", 400, "the model has no output 'y'; it has z", outputs=[{"name": "y"}],
    ),
}  # fmt: skip
BOTH = {
    f"{group}: {name}": bad
    for group, cases in [
        ("json", JSON), ("tensor", TENSORS), ("binary", BINARY), ("extension", EXTENSIONS),
        ("compression", COMPRESSION), ("class", CLASS),
    ]
    for name, bad in cases.items()
}  # fmt: skip

NAMES = "mirror, scaler, starting, text"
ROUTER: dict[str, Bad] = {
    "unknown model": Bad(
        x(), 404, f"The model 'nosuch' does not exist. Models that do: {NAMES}",
        path="/v2/models/nosuch/infer",
    ),
    "metadata of an unknown model": Bad(
        b"", 404, f"The model 'nosuch' does not exist. Models that do: {NAMES}",
        path="/v2/models/nosuch", method="GET",
    ),
    "readiness of an unknown model": Bad(
        b"", 404, "The model 'nosuch' does not exist",
        path="/v2/models/nosuch/ready", method="GET",
    ),
    "no model": Bad(
        x(), 404, "there is no /v2/models/ here; the routes are listed at /docs",
        path="/v2/models/",
    ),
    "no such route": Bad(
        b"", 404, "there is no /v2/nosuch here; the routes are listed at /docs",
        path="/v2/nosuch", method="GET",
    ),
    "starting": Bad(
        x(), 503, "The model 'starting' is starting; try again in a few seconds",
        path="/v2/models/starting/infer",
    ),
    "PUT": Bad(x(), 405, f"{INFER} takes POST, not PUT", method="PUT"),
    "POST of the server": Bad(x(), 405, "/v2 takes GET, not POST", path="/v2"),
    "GET of infer": Bad(b"", 405, f"{INFER} takes POST, not GET", method="GET"),
    "POST of metadata": Bad(
        x(), 405, "/v2/models/mirror takes GET, not POST", path="/v2/models/mirror",
    ),
    "overloaded": Bad(
        b"", 429, "Request dropped", path="/v2/models/mirror/versions/overloaded", method="GET",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with serving(PLAIN, starting=True) as running:
        yield running


def send(url: str, bad: Bad) -> httpx.Response:
    content = bad.body if isinstance(bad.body, bytes) else json.dumps(bad.body).encode()
    headers = dict(bad.headers or {})
    if bad.tail is not None:
        headers[LENGTH] = str(len(content))
        content += bad.tail
    return httpx.request(bad.method, url + bad.path, content=content, headers=headers, timeout=20)


def check(answer: httpx.Response, bad: Bad) -> None:
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == {"error": bad.message}
    assert answer.status_code == bad.status


@pytest.mark.parametrize("base", [0, 1], ids=["router", "direct"])
@pytest.mark.parametrize("bad", BOTH.values(), ids=BOTH.keys())
def test_a_bad_request_is_refused(service: Service, bad: Bad, base: int) -> None:
    check(send(service.bases(bad.path.split("/")[3])[base], bad), bad)


@pytest.mark.parametrize("bad", ROUTER.values(), ids=ROUTER.keys())
def test_the_router_answers_in_the_protocols_form(service: Service, bad: Bad) -> None:
    answer = send(service.router, bad)
    check(answer, bad)
    if bad.status == 503:
        assert answer.headers["retry-after"] == "5"
    if bad.status == 429:
        assert answer.headers["retry-after"] == "7"


@pytest.mark.parametrize(("base", "limit"), [(0, 2 * MAX_BODY_BYTES), (1, MAX_BODY_BYTES)])
def test_a_bomb_is_refused_where_it_arrives(service: Service, base: int, limit: int) -> None:
    message = (
        f"the body is larger than {limit} bytes without its compression, the most that one of "
        f"{len(BOMB)} bytes may become: send it without compression"
    )
    bad = Bad(BOMB, 413, message, headers=GZIP)
    check(send(service.bases("mirror")[base], bad), bad)


def test_another_version_does_not_exist(service: Service) -> None:
    answer = httpx.post(f"{service.router}/v2/models/mirror/versions/2/infer", json=x())
    assert answer.status_code == 404
    assert answer.json() == {"error": "the model 'mirror' has version 1 only"}
    answer = httpx.get(f"{service.router}/v2/models/mirror/versions/2/ready")
    assert answer.status_code == 404
    assert answer.json() == {"error": "the model 'mirror' has version 1 only"}


@pytest.mark.parametrize("path", ["other/ready", "versions/1/other/ready", "versions/ready"])
def test_readiness_has_no_other_paths(service: Service, path: str) -> None:
    answer = httpx.get(f"{service.router}/v2/models/mirror/{path}")
    assert answer.status_code == 404
    assert answer.json().keys() == {"error"}


def test_a_model_may_be_called_ready(service: Service) -> None:
    answer = httpx.get(f"{service.router}/v2/models/ready")  # its metadata, not some readiness
    assert answer.status_code == 404
    assert answer.json() == {"error": f"The model 'ready' does not exist. Models that do: {NAMES}"}


def test_a_model_of_texts_cannot_take_tensors(service: Service) -> None:
    answer = httpx.post(f"{service.router}/v2/models/text/infer", json=x())
    assert answer.status_code == 400
    assert answer.json().keys() == {"error"}
    assert "it is for models of the task tensor" in answer.json()["error"]


def test_there_are_enough_of_them() -> None:
    assert len(BOTH) + len(ROUTER) >= 80


def test_an_answer_after_a_bad_request_is_right(service: Service) -> None:
    with httpx.Client(base_url=service.router) as client:
        for bad in (TENSORS["ragged"], COMPRESSION["damaged"], BINARY["bytes are missing"]):
            send(service.router, bad)
            answer = client.post(INFER, json=x()).json()
            assert answer["outputs"] == [
                {"name": "x", "datatype": "FP32", "shape": [2], "data": [1.0, 2.0]}
            ]


def test_a_body_above_the_routers_limit_is_refused_before_it_is_sent(service: Service) -> None:
    parts = urlsplit(service.router)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=10)
    connection.putrequest("POST", INFER)
    connection.putheader("content-length", str(2 * MAX_BODY_BYTES + 1))
    connection.endheaders()
    answer = connection.getresponse()
    assert answer.status == 413
    message = (
        f"the request body is larger than {2 * MAX_BODY_BYTES} bytes, the limit that the router's "
        "`max_body_bytes` sets"
    )
    assert json.loads(answer.read()) == {"error": message}
    connection.close()


def test_a_failure_is_logged_with_its_traceback(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        send(service.proxy + "/models/scaler", CLASS["fails"])
    [record] = [record for record in caplog.records if "bad-7" in record.getMessage()]
    assert record.exc_info is not None
    assert "secret-key" in str(record.exc_info[1])


def test_other_routes_keep_openais_envelope(service: Service) -> None:
    answer = httpx.post(f"{service.router}/v1/infer", json={"model": "mirror"})
    assert answer.json()["error"]["type"] == "invalid_request_error"
    answer = httpx.get(f"{service.proxy}/models/mirror/nosuch")
    assert answer.json()["error"]["code"] == "not_found"


@pytest.mark.parametrize("alias", ["org/mirror:1", "mine"])
def test_another_name_of_a_model(alias: str) -> None:
    cfg = {"task": "tensor", "serving": {"aliases": [alias]}}
    app = create_app(PLAIN["mirror"][0], cfg, name="mirror")
    with serve_asgi(app, lifespan="on") as url:
        for name in (alias, quote(alias, safe=""), "mirror"):
            path = f"{url}/v2/models/{name}"
            assert httpx.get(path).json()["name"] == "mirror"
            assert httpx.get(f"{path}/versions/1/ready").json()["name"] == "mirror"
            assert httpx.post(f"{path}/infer", json=x()).json()["model_name"] == "mirror"
        lost = httpx.get(f"{url}/v2/models/{alias}/more")
        assert lost.status_code == 404
