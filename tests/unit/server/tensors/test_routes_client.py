"""The Open Inference Protocol with its public client, through the router and at /models/<name>."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import ml_dtypes
import numpy
import onnxruntime
import pytest
import tritonclient.http
import tritonclient.http.aio
from tritonclient.http import InferInput, InferRequestedOutput, InferResult
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from deployments.onnx.config import FAMILY
from deployments.onnx.tiny_model import make_tiny_vision
from tests.support.oip_service import PLAIN, Service, serving
from tests.support.onnx_models import configure, make_encoder

BASES = ["router", "direct"]


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("graphs")
    return {
        "vision": make_tiny_vision(folder / "vision.onnx"),
        "encoder": make_encoder(folder / "encoder.onnx"),
    }


@pytest.fixture(scope="module")
def service(graphs: dict[str, Path]) -> Iterator[Service]:
    specs = {name: (FAMILY, configure(path)) for name, path in graphs.items()}
    with serving({**PLAIN, **specs}, starting=True) as running:
        yield running


def address(service: Service, base: str, model: str) -> str:
    return service.bases(model)[BASES.index(base)].removeprefix("http://")


@pytest.fixture(params=BASES)
def base(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


class Client:
    """One client for each model, closed at the end."""

    def __init__(self, service: Service, base: str) -> None:
        self._service = service
        self._base = base
        self._open: dict[str, Any] = {}

    def __getitem__(self, model: str) -> Any:
        if model not in self._open:
            url = address(self._service, self._base, model)
            self._open[model] = tritonclient.http.InferenceServerClient(url, concurrency=8)
        return self._open[model]

    def infer(self, model: str, arrays: dict[str, Any], **options: Any) -> InferResult:
        binary = options.pop("binary", True)
        return self[model].infer(model, tensors(arrays, binary), **options)

    def close(self) -> None:
        for client in self._open.values():
            client.close()


@pytest.fixture
def client(service: Service, base: str) -> Iterator[Client]:
    client = Client(service, base)
    yield client
    client.close()


def tensors(arrays: dict[str, Any], binary: bool = True) -> list[InferInput]:
    found = []
    for name, array in arrays.items():
        tensor = InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        found.append(tensor.set_data_from_numpy(array, binary_data=binary))
    return found


def reference(path: Path, inputs: dict[str, Any]) -> dict[str, Any]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def image(rows: int = 2, height: int = 5, seed: int = 0) -> dict[str, Any]:
    random = numpy.random.default_rng(seed)
    return {"image": random.standard_normal((rows, 3, height, 6)).astype(numpy.float32)}


# -- what there is


def test_health_and_metadata(client: Client) -> None:
    vision = client["vision"]
    assert vision.is_server_live()
    assert vision.is_model_ready("vision")
    assert vision.is_model_ready("vision", "1")
    assert vision.get_server_metadata() == {
        "name": "truthgpt-serve",
        "version": "0.1.0",
        "extensions": ["binary_tensor_data", "parameters"],
    }
    expected = {
        "name": "vision",
        "versions": ["1"],
        "platform": "onnxruntime_onnx_cpu",
        "inputs": [{"name": "image", "datatype": "FP32", "shape": [-1, 3, -1, -1]}],
        "outputs": [{"name": "scores", "datatype": "FP32", "shape": [-1, 3]}],
    }
    assert vision.get_model_metadata("vision") == expected
    assert vision.get_model_metadata("vision", "1") == expected
    assert client["mirror"].get_model_metadata("mirror") == {
        "name": "mirror", "versions": ["1"], "platform": "python", "inputs": [], "outputs": [],
    }  # fmt: skip


def test_readiness_of_a_service_that_starts(service: Service) -> None:
    with httpx.Client(base_url=service.router) as http:
        assert http.get("/v2/health/live").json() == {"live": True}
        answer = http.get("/v2/health/ready")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert answer.json() == {"error": "these models are not ready: starting"}
        answer = http.get("/v2/models/starting/ready")
        message = "The model 'starting' is starting; try again in a few seconds"
        assert (answer.status_code, answer.json()) == (503, {"error": message})
        before = len(service.mounted.requests)
        answer = http.get("/v2/models/vision/ready")
        assert answer.json() == {"name": "vision", "ready": True}
        assert len(service.mounted.requests) == before, "asking wakes no model"
    answer = httpx.get(f"{service.proxy}/models/vision/v2/health/ready")
    assert answer.json() == {"ready": True}


# -- tensors

FORMS = [
    {},
    {"outputs": ["scores"]},
    {"binary": False},
    {"request_compression_algorithm": "gzip"},
    {"request_compression_algorithm": "deflate"},
    {"response_compression_algorithm": "gzip"},
    {"response_compression_algorithm": "deflate"},
    {
        "request_compression_algorithm": "gzip",
        "response_compression_algorithm": "gzip",
        "binary": False,
        "outputs": ["scores"],
    },
]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_onnx_runtimes_own_result(
    client: Client, graphs: dict[str, Path], form: dict[str, Any]
) -> None:
    inputs = image()
    options = dict(form)
    if "outputs" in options:
        binary = options.get("binary", True)
        options["outputs"] = [InferRequestedOutput("scores", binary_data=binary)]
    result = client.infer("vision", inputs, request_id="r-1", **options)
    expected = reference(graphs["vision"], inputs)["scores"]
    numpy.testing.assert_allclose(result.as_numpy("scores"), expected, rtol=1e-5, atol=1e-6)
    answer = result.get_response()
    assert (answer["id"], answer["model_name"], answer["model_version"]) == ("r-1", "vision", "1")


def test_named_outputs_come_alone_and_mixed(client: Client, graphs: dict[str, Path]) -> None:
    random = numpy.random.default_rng(1)
    inputs = {
        "ids": random.integers(0, 10, (3, 4)),
        "mask": random.integers(0, 2, (3, 4)).astype(numpy.float32),
    }
    expected = reference(graphs["encoder"], inputs)
    everything = client.infer("encoder", inputs)
    for name, array in expected.items():
        numpy.testing.assert_allclose(everything.as_numpy(name), array, rtol=1e-6)
    outputs = [
        InferRequestedOutput("sums", binary_data=False),
        InferRequestedOutput("states", binary_data=True),
    ]
    mixed = client.infer("encoder", inputs, outputs=outputs)
    assert [output["name"] for output in mixed.get_response()["outputs"]] == ["sums", "states"]
    for name, array in expected.items():
        numpy.testing.assert_allclose(mixed.as_numpy(name), array, rtol=1e-6)
    alone = client.infer("encoder", inputs, outputs=outputs[:1])
    assert [output["name"] for output in alone.get_response()["outputs"]] == ["sums"]


def of_every_type() -> dict[str, Any]:
    whole = {
        name: numpy.array([[numpy.iinfo(name).min, 0, numpy.iinfo(name).max]], name)
        for name in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
    }
    real = {
        name: numpy.array([[-1.5, 0.0], [2.0**-10, 1024.0]], name)
        for name in ("float16", "float32", "float64")
    }
    return {
        **whole,
        **real,
        "bfloat16": numpy.array([-1.5, 0.0, 3e38], ml_dtypes.bfloat16),
        "bool": numpy.array([True, False]),
        "texts": numpy.array([["", "é"], ["abc", "x" * 300]], dtype=object),
        "scalar": numpy.array(7, numpy.int32),
        "nothing": numpy.zeros((0, 3), numpy.float32),
        "no texts": numpy.zeros((2, 0), dtype=object),
    }


@pytest.mark.parametrize("binary_output", [True, False])
@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("name", of_every_type())
def test_every_type_and_shape_comes_back_as_it_went(
    client: Client, name: str, binary: bool, binary_output: bool
) -> None:
    array = of_every_type()[name]
    if name == "bfloat16" and not binary:
        binary = True  # the client refuses the other form; test_oip_requests has it
    outputs = [InferRequestedOutput("x", binary_data=binary_output)]
    result = client.infer("mirror", {"x": array}, binary=binary, outputs=outputs)
    back = result.as_numpy("x")
    assert back.shape == array.shape
    if array.dtype == object:
        texts = [item.encode() for item in array.ravel()]
        found = [item if isinstance(item, bytes) else item.encode() for item in back.ravel()]
        assert found == texts
    else:
        assert back.dtype == array.dtype
        assert numpy.array_equal(back, array)


def test_bytes_that_are_no_text(client: Client) -> None:
    array = numpy.array([b"\xff\x00", b""], dtype=object)
    assert client.infer("mirror", {"x": array}).as_numpy("x").tolist() == array.tolist()


def test_a_class_takes_its_parameters_and_owns_its_arrays(client: Client) -> None:
    array = {"x": numpy.arange(3, dtype=numpy.float32)}
    assert client.infer("scaler", array).as_numpy("y").tolist() == [0, 2, 4]
    result = client.infer("scaler", array, parameters={"factor": 5})
    assert result.as_numpy("y").tolist() == [0, 5, 10]


def test_large_tensors_pass_whole(client: Client) -> None:
    array = numpy.random.default_rng(2).standard_normal(2**18)  # 2 MiB, in several pieces
    for options in ({}, {"request_compression_algorithm": "gzip"}):
        back = client.infer("mirror", {"x": array}, **options).as_numpy("x")
        assert numpy.array_equal(back, array)
    zeros = numpy.zeros(2**18)
    result = client.infer("mirror", {"x": zeros}, response_compression_algorithm="gzip")
    assert numpy.array_equal(result.as_numpy("x"), zeros)


def test_an_error_is_the_clients_exception(client: Client) -> None:
    with pytest.raises(InferenceServerException) as caught:
        client.infer("vision", {"image": numpy.zeros((1, 2, 4, 4), numpy.float32)})
    assert caught.value.status() == "400"
    assert caught.value.message() == (
        "input 'image' expects float32 [batch, 3, height, width], given float32 [1, 2, 4, 4]"
    )


def test_the_clients_own_time_limit_is_kept(client: Client) -> None:
    array = {"x": numpy.zeros(1, numpy.float32)}
    with pytest.raises(InferenceServerException) as caught:
        client.infer("scaler", array, parameters={"factor": "slow"}, timeout=100_000)
    assert caught.value.status() == "504"
    assert caught.value.message() == "the model did not finish within 0.1 s, its time limit"


# -- many at once


def test_mixed_shapes_at_once(client: Client, graphs: dict[str, Path]) -> None:
    vision = client["vision"]
    session = onnxruntime.InferenceSession(
        str(graphs["vision"]), providers=["CPUExecutionProvider"]
    )

    requests = [image(1 + number % 3, 4 + number % 4, seed=number) for number in range(64)]
    waiting = [
        vision.async_infer("vision", tensors(inputs, number % 2 == 0))
        for number, inputs in enumerate(requests)
    ]
    for request, inputs in zip(waiting, requests, strict=True):
        [expected] = session.run(["scores"], inputs)
        found = request.get_result(timeout=20).as_numpy("scores")
        numpy.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


async def test_the_asynchronous_client(
    service: Service, base: str, graphs: dict[str, Path]
) -> None:
    url = address(service, base, "vision")
    async with tritonclient.http.aio.InferenceServerClient(url) as client:
        assert await client.is_model_ready("vision")
        metadata = await client.get_model_metadata("vision")
        assert metadata["outputs"][0]["name"] == "scores"

        async def ask(number: int) -> None:
            inputs = image(1 + number % 2, 4 + number % 3, seed=number)
            coding = (None, "gzip", "deflate")[number % 3]
            result = await client.infer(
                "vision",
                tensors(inputs, number % 2 == 0),
                request_compression_algorithm=coding,
                response_compression_algorithm=coding,
            )
            expected = reference(graphs["vision"], inputs)["scores"]
            numpy.testing.assert_allclose(result.as_numpy("scores"), expected, rtol=1e-4, atol=1e-5)

        await asyncio.gather(*(ask(number) for number in range(32)))
        with pytest.raises(InferenceServerException, match="is missing; the model expects"):
            await client.infer("vision", [])


# -- compression


@pytest.mark.parametrize(
    ("coding", "unpack"), [("gzip", gzip.decompress), ("deflate", zlib.decompress)]
)
def test_an_answer_is_compressed_only_when_asked_and_worth_it(
    service: Service, base: str, coding: str, unpack: Any
) -> None:
    url = f"http://{address(service, base, 'mirror')}/v2/models/mirror/infer"
    random = numpy.random.default_rng(4).standard_normal(4096)
    for data, packed in ((numpy.zeros(4096), True), (random, False)):
        tensor = InferInput("x", [4096], "FP64").set_data_from_numpy(data)
        body, length = tritonclient.http.InferenceServerClient.generate_request_body([tensor])
        headers = {"Inference-Header-Content-Length": str(length), "Accept-Encoding": coding}
        with httpx.stream("POST", url, content=body, headers=headers) as answer:
            raw = b"".join(answer.iter_raw())
        assert answer.headers["content-type"] == "application/octet-stream"
        assert answer.headers["vary"] == "accept-encoding"
        assert answer.headers.get("content-encoding") == (coding if packed else None)
        content = unpack(raw) if packed else raw
        assert len(content) == 4096 * 8 + int(answer.headers["Inference-Header-Content-Length"])
        assert content.endswith(data.tobytes())
        headers["Accept-Encoding"] = f"{coding};q=0, identity"
        plain = httpx.post(url, content=body, headers=headers)
        assert "content-encoding" not in plain.headers
