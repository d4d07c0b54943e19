"""Tensor models over the whole stack, with the protocol's public client."""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy
import onnxruntime
import pytest
import tritonclient.http
import tritonclient.http.aio
from tritonclient.http import InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from benchmarks.local_cluster import LocalCluster, model_application
from deployments.onnx.tiny_model import make_tiny_vision
from tests.serve.bare_cluster import install
from tests.support.onnx_models import make_encoder
from truthgpt_serve.router.bodies.arrivals import GATHERED_BYTES

SERVE = Path(__file__).parents[1]


@dataclass(frozen=True)
class Tensors:
    """The running service, and ONNX Runtime's own sessions of the same files."""

    cluster: LocalCluster
    sessions: dict[str, Any]

    def address(self, way: str, model: str) -> str:
        """Returns what the client takes as its `url`."""
        base = self.cluster.url.removeprefix("http://")
        return base if way == "router" else f"{base}/models/{model}"

    def expected(self, model: str, inputs: dict[str, Any]) -> dict[str, Any]:
        """Returns ONNX Runtime's own result."""
        session = self.sessions[model]
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, inputs), strict=True))


@pytest.fixture(scope="module")
def service(bare: LocalCluster, modules: Path, tmp_path_factory: pytest.TempPathFactory) -> Tensors:
    folder = tmp_path_factory.mktemp("tensors")
    shutil.copy(SERVE / "user_tensor_models.py", modules / "own_tensor_models.py")
    files = {
        "vision": make_tiny_vision(folder / "vision.onnx"),
        "encoder": make_encoder(folder / "encoder.onnx"),
    }
    small: dict[str, Any] = {"cpus": 0.1, "gpus": 0}
    models: dict[str, Any] = {name: {"name_or_path": str(path)} for name, path in files.items()}
    models["statistics"] = {"family": "custom", "import": "own_tensor_models"}
    applications = [
        model_application(name, {"task": "tensor", "seed": 2, "model": model, "hardware": small})
        for name, model in models.items()
    ]
    install(bare, applications)
    sessions = {
        name: onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        for name, path in files.items()
    }
    return Tensors(bare, sessions)


@pytest.fixture(params=["router", "direct"])
def way(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


def tensors(arrays: dict[str, Any], binary: bool = True) -> list[InferInput]:
    found = []
    for name, array in arrays.items():
        tensor = InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        found.append(tensor.set_data_from_numpy(array, binary_data=binary))
    return found


def image(number: int) -> dict[str, Any]:
    random = numpy.random.default_rng(number)
    shape = (1 + number % 3, 3, 5 + number % 4, 6)
    return {"image": random.standard_normal(shape).astype(numpy.float32)}


def assert_close(result: Any, expected: dict[str, Any]) -> None:
    for name, array in expected.items():
        numpy.testing.assert_allclose(result.as_numpy(name), array, rtol=1e-4, atol=1e-5)


def test_health_and_metadata(service: Tensors, way: str) -> None:
    with tritonclient.http.InferenceServerClient(service.address(way, "vision")) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("vision")
        assert not client.is_model_ready("nosuch")
        assert client.get_server_metadata()["extensions"] == ["binary_tensor_data", "parameters"]
        metadata = client.get_model_metadata("vision")
        assert metadata["platform"] == "onnxruntime_onnx_cpu"
        assert metadata["inputs"] == [
            {"name": "image", "datatype": "FP32", "shape": [-1, 3, -1, -1]}
        ]


@pytest.mark.parametrize("coding", [None, "gzip", "deflate"])
@pytest.mark.parametrize("binary", [True, False])
def test_results_are_onnx_runtimes_own(
    service: Tensors, way: str, binary: bool, coding: str | None
) -> None:
    inputs = {
        "ids": numpy.array([[1, 2, 3], [9, 0, 4]]),
        "mask": numpy.array([[1, 1, 0], [1, 0, 0]], numpy.float32),
    }
    outputs = [InferRequestedOutput(name, binary_data=binary) for name in ("sums", "states")]
    with tritonclient.http.InferenceServerClient(service.address(way, "encoder")) as client:
        result = client.infer(
            "encoder",
            tensors(inputs, binary),
            outputs=outputs,
            request_id="r-7",
            request_compression_algorithm=coding,
            response_compression_algorithm=coding,
        )
    assert result.get_response()["id"] == "r-7"
    assert_close(result, service.expected("encoder", inputs))


async def test_mixed_shapes_at_once(service: Tensors, way: str) -> None:
    address = service.address(way, "vision")
    async with tritonclient.http.aio.InferenceServerClient(address) as client:

        async def ask(number: int) -> None:
            inputs = image(number)
            result = await client.infer("vision", tensors(inputs, number % 2 == 0))
            assert_close(result, service.expected("vision", inputs))

        await asyncio.gather(*(ask(number) for number in range(96)))


def test_a_users_class_on_numpy(service: Tensors, way: str) -> None:
    values = {"values": numpy.array([[1, 2, 6], [0, 0, -3]], numpy.float32)}
    with tritonclient.http.InferenceServerClient(service.address(way, "statistics")) as client:
        result = client.infer("statistics", tensors(values))
        assert result.as_numpy("mean").tolist() == [6.0, -2.0]
        assert result.as_numpy("largest").tolist() == [6.0, 0.0]
        assert client.get_model_metadata("statistics")["platform"] == "python"


def test_tensors_over_the_general_route(service: Tensors) -> None:
    inputs = image(4)
    array = inputs["image"]
    data = base64.b64encode(array.tobytes()).decode()
    tensor = {"shape": list(array.shape), "dtype": "float32", "b64": data}
    body = {"model": "vision", "inputs": {"image": tensor}}
    answer = httpx.post(f"{service.cluster.url}/v1/infer", json=body, timeout=30).json()
    scores = answer["outputs"]["scores"]
    found = numpy.frombuffer(base64.b64decode(scores["b64"]), scores["dtype"])
    expected = service.expected("vision", inputs)["scores"]
    numpy.testing.assert_allclose(found.reshape(scores["shape"]), expected, rtol=1e-4, atol=1e-5)


def test_errors_are_the_protocols(service: Tensors, way: str) -> None:
    with tritonclient.http.InferenceServerClient(service.address(way, "vision")) as client:
        with pytest.raises(InferenceServerException) as caught:
            client.infer("vision", tensors({"image": numpy.zeros((1, 3, 4), numpy.float32)}))
        assert (caught.value.status(), caught.value.message()) == (
            "400",
            "input 'image' expects float32 [batch, 3, height, width], given float32 [1, 3, 4]",
        )
        with pytest.raises(InferenceServerException) as caught:
            client.infer("nosuch", tensors(image(0)))
        assert caught.value.status() == "404"
    with httpx.Client(base_url=service.cluster.url) as plain:
        answer = plain.post("/v2/models/nosuch/infer", json={})
        names = "encoder, statistics, vision"
        message = f"The model 'nosuch' does not exist. Models that do: {names}"
        assert (answer.status_code, answer.json()) == (404, {"error": message})
        answer = plain.put("/v2/models/vision/infer", json={})
        assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
        assert len(answer.headers.get_list("x-request-id")) == 1


def test_a_body_that_comes_in_parts_is_refused_when_it_is_whole(service: Tensors) -> None:
    parts = urlsplit(service.cluster.url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
    connection.putrequest("POST", "/v2/models/vision/versions/9/infer")
    connection.putheader("content-length", str(2**20))
    connection.endheaders()
    connection.send(bytes(GATHERED_BYTES + 1))  # a router sends it on then
    time.sleep(1)
    connection.send(bytes(2**20 - GATHERED_BYTES - 1))
    answer = connection.getresponse()
    assert answer.status == 404
    error = json.loads(answer.read())["error"]
    connection.close()
    assert "the model 'vision' has version 1 only" in error


def test_large_tensors(service: Tensors, way: str) -> None:
    array = numpy.random.default_rng(1).standard_normal((16, 3, 256, 128)).astype(numpy.float32)
    with tritonclient.http.InferenceServerClient(service.address(way, "vision")) as client:
        result = client.infer("vision", tensors({"image": array}))  # 6 MiB
    assert_close(result, service.expected("vision", {"image": array}))


def test_the_router_says_what_computes(service: Tensors) -> None:
    with httpx.Client(base_url=service.cluster.url, timeout=30) as client:
        found = client.get("/v1/models/vision").json()["acceleration"]
        assert (found["execution_provider"], found["num_threads"]) == ("cpu", 1)
        assert found["execution_providers"] == ["CPUExecutionProvider"]
        assert found["batch_requests"] is True
        assert client.get("/v1/models/statistics").json()["acceleration"] is None
