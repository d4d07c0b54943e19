"""The family `onnxruntime` at its Python interface, against ONNX Runtime's own output."""

from __future__ import annotations

import re
import threading
import tracemalloc
from pathlib import Path

import numpy
import pytest
import torch
from onnx import TensorProto
from onnxruntime.quantization import QuantType, quantize_dynamic

from tests.support.onnx_models import (
    Arrays,
    assert_same,
    export_torch,
    images,
    load,
    make_endless,
    make_node_graph,
    reference,
)
from truthgpt_serve import run_infer
from truthgpt_serve.cancellation import Call, CallCancelledError
from truthgpt_serve.errors import RequestError, ServerError

# -- running


def test_a_folder_runs_as_its_file_does(vision: Path) -> None:
    inputs = images(2, 9, 7)
    for path in (vision, vision.parent):
        assert_same(load(path).infer(inputs), reference(vision, inputs))


def test_what_torch_exports_runs_as_torch_does(tmp_path: Path) -> None:
    network = export_torch(tmp_path / "net.onnx")
    model = load(tmp_path / "net.onnx")
    assert model.metadata()["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
    inputs = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    expected = network(inputs).detach().numpy()
    numpy.testing.assert_allclose(model.infer({"x": inputs.numpy()})["y"], expected, atol=1e-6)


def test_a_quantized_file_runs_as_it_is(vision: Path, tmp_path: Path) -> None:
    path = tmp_path / "quantized.onnx"
    quantize_dynamic(vision, path, weight_type=QuantType.QUInt8, op_types_to_quantize=["MatMul"])
    inputs = images(2, 8, 8)
    model = load(path)
    assert_same(model.infer(inputs), reference(path, inputs))
    assert not numpy.array_equal(model.infer(inputs)["scores"], reference(vision, inputs)["scores"])


def test_lists_are_taken_too(encoder: Path, tmp_path: Path) -> None:
    inputs = {"ids": [[1, 2]], "mask": [[1, 0]]}
    arrays = {"ids": numpy.array([[1, 2]]), "mask": numpy.array([[1, 0]], numpy.float32)}
    assert_same(load(encoder).infer(inputs), reference(encoder, arrays))
    config = tmp_path / "m.yaml"
    config.write_text(f"task: tensor\nmodel: {{name_or_path: {encoder}}}\n")
    assert_same(run_infer(config, inputs), reference(encoder, arrays))


def test_texts_come_as_texts_or_bytes(tmp_path: Path) -> None:
    path = make_node_graph(tmp_path / "m.onnx", "Identity", ["n"], kind=TensorProto.STRING)
    model = load(path)
    for value in (["a", "é"], [b"a", "é".encode()]):
        assert model.infer({"x": numpy.array(value, dtype=object)})["y"].tolist() == ["a", "é"]
    assert model.infer({"x": ["b"]})["y"].tolist() == ["b"]
    with pytest.raises(RequestError, match="expects texts in UTF-8, given other bytes"):
        model.infer({"x": numpy.array([b"\xff"], dtype=object)})
    with pytest.raises(RequestError, match="expects texts, given a int"):
        model.infer({"x": numpy.array([3], dtype=object)})


@pytest.mark.parametrize("kind", [TensorProto.STRING, TensorProto.FLOAT])
def test_one_long_text_does_not_make_the_others_as_large(tmp_path: Path, kind: int) -> None:
    model = load(make_node_graph(tmp_path / "m.onnx", "Identity", ["n"], kind=kind))
    texts = ["a" * 100_000] + [""] * 200
    tracemalloc.start()
    try:
        if kind == TensorProto.STRING:
            assert model.infer({"x": texts})["y"].tolist() == texts
        else:
            with pytest.raises(RequestError, match="given a list of texts"):
                model.infer({"x": texts})
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 10 * 2**20, "numpy's own texts take 80 MB"


def test_close_frees_the_graph(vision: Path) -> None:
    model = load(vision)
    model.close()
    model.close()
    with pytest.raises(ServerError, match="the model is not loaded"):
        model.infer(images(1, 4, 4))


# -- what is refused


def bad_inputs() -> dict[str, tuple[Arrays, str]]:
    ids = numpy.zeros((2, 4), numpy.int64)
    mask = numpy.ones((2, 4), numpy.float32)
    described = "ids: int64 [batch, length], mask: float32 [batch, length]"
    return {
        "unknown": (
            {"ids": ids, "mask": mask, "more": ids},
            f"input 'more' is not one of the model's inputs; it has {described}",
        ),
        "missing": ({"ids": ids}, f"input 'mask' is missing; the model expects {described}"),
        "type": (
            {"ids": ids.astype(numpy.int32), "mask": mask},
            "input 'ids' expects int64 [batch, length], given int32 [2, 4]",
        ),
        "rank": (
            {"ids": ids[0], "mask": mask},
            "input 'ids' expects int64 [batch, length], given int64 [4]",
        ),
        "named axis": (
            {"ids": ids, "mask": mask[:, :3]},
            "input 'mask' expects float32 [batch, length], given float32 [2, 3]: axis 'length' is "
            "4 in input 'ids'",
        ),
        "batch axis": (
            {"ids": ids, "mask": mask[:1]},
            "input 'mask' expects float32 [batch, length], given float32 [1, 4]: axis 'batch' is "
            "2 in input 'ids'",
        ),
        "no array": (
            {"ids": {"a": 1}, "mask": mask},
            "input 'ids' expects int64 [batch, length], given a dict",
        ),
        "ragged": (
            {"ids": [[1], [1, 2]], "mask": mask},
            "input 'ids' expects int64 [batch, length], given lists of different lengths",
        ),
        "fractions": (
            {"ids": [[1.5]], "mask": mask},
            "input 'ids' expects int64 [batch, length], given a list of float64",
        ),
        "texts": (
            {"ids": [["1"]], "mask": mask},
            "input 'ids' expects int64 [batch, length], given a list of texts",
        ),
        "out of the table": (
            {"ids": ids + 10, "mask": mask},
            "the model refuses the inputs: indices element out of data bounds, idx=10 must be "
            "within the inclusive range [-10,9]",
        ),
    }


@pytest.mark.parametrize("case", bad_inputs())
def test_a_wrong_input_is_named(encoder: Path, case: str) -> None:
    inputs, message = bad_inputs()[case]
    model = load(encoder)
    for call in (model.infer, lambda given: model.infer_batch([given])):
        with pytest.raises(RequestError) as caught:
            call(inputs)
        assert caught.value.message == message
    if case != "out of the table":
        with pytest.raises(RequestError, match=re.escape(message)):
            model.batch_key(inputs)
        assert caught.value.param == f"inputs.{message.split(chr(39))[1]}"


def test_a_number_out_of_range_and_a_fixed_axis(tmp_path: Path) -> None:
    path = make_node_graph(tmp_path / "m.onnx", "Identity", ["n", 2], kind=TensorProto.UINT8)
    model = load(path)
    message = re.escape("input 'x' expects uint8 [n, 2], given a list with a number out of range")
    with pytest.raises(RequestError, match=message):
        model.infer({"x": [[1, 256]]})
    message = re.escape("input 'x' expects uint8 [n, 2], given uint8 [1, 3]")
    with pytest.raises(RequestError, match=message):
        model.infer({"x": numpy.zeros((1, 3), numpy.uint8)})
    assert model.infer({"x": []} | {"x": numpy.zeros((0, 2), numpy.uint8)})["y"].shape == (0, 2)


# -- execution providers


def test_a_cancelled_run_ends_before_its_end(tmp_path: Path) -> None:
    model = load(make_endless(tmp_path / "endless.onnx"), engine={"batch_requests": False})
    call = Call()
    timer = threading.Timer(0.5, call.cancel)
    timer.start()
    with pytest.raises(CallCancelledError):
        call.run(lambda: model.infer({"x": numpy.ones(1, numpy.float32)}))
    timer.join()
