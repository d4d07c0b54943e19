"""Tiny ONNX graphs with fixed seeds, and configurations for them; knows no test."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

from deployments.onnx.deployment import OnnxModel
from deployments.onnx.tiny_model import IR_VERSION, OPERATORS
from truthgpt_serve.config import load_model_config

Arrays = dict[str, Any]


def configure(path: Path, **others: Any) -> dict[str, Any]:
    """Returns the whole configuration for the graph at `path`; `engine` is `serving.engine`."""
    engine = others.pop("engine", {})
    serving = {"engine": engine, **others.pop("serving", {})}
    model = {"name_or_path": str(path)}
    return load_model_config(
        {"task": "tensor", "model": model, "serving": serving, **others}
    ).to_cfg()


def tensor(name: str, kind: int, shape: list[Any] | None) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def save(
    path: Path, nodes: list[Any], inputs: list[Any], outputs: list[Any], **weights: Any
) -> Path:
    """Writes a checked graph; each further argument is a weight of that name."""
    initial = [
        numpy_helper.from_array(numpy.asarray(array), name) for name, array in weights.items()
    ]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, initial)
    operators = [helper.make_opsetid("", OPERATORS)]
    model = helper.make_model(graph, opset_imports=operators, ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def make_endless(path: Path) -> Path:
    """Writes a loop of 2^40 turns around one operator."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Sin", ["before"], ["after"]),
        ],
        "body",
        [
            tensor("turn", TensorProto.INT64, []),
            tensor("go", TensorProto.BOOL, []),
            tensor("before", TensorProto.FLOAT, [1]),
        ],
        [tensor("go_on", TensorProto.BOOL, []), tensor("after", TensorProto.FLOAT, [1])],
    )
    loop = helper.make_node("Loop", ["turns", "start", "x"], ["y"], body=body)
    x, y = (tensor(name, TensorProto.FLOAT, [1]) for name in "xy")
    turns, start = numpy.array(2**40, numpy.int64), numpy.array(True)
    return save(path, [loop], [x], [y], turns=turns, start=start)


def make_encoder(path: Path) -> Path:
    """Writes a lookup of ids with a mask: two inputs that share both axes, two outputs."""
    random = numpy.random.default_rng(8)
    axes = ["batch", "length"]
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("Unsqueeze", ["mask", "last"], ["wide"]),
        helper.make_node("Mul", ["rows", "wide"], ["states"]),
        helper.make_node("ReduceSum", ["states", "first"], ["sums"], keepdims=0),
    ]
    return save(
        path,
        nodes,
        [tensor("ids", TensorProto.INT64, axes), tensor("mask", TensorProto.FLOAT, axes)],
        [
            tensor("states", TensorProto.FLOAT, [*axes, 5]),
            tensor("sums", TensorProto.FLOAT, ["batch", 5]),
        ],
        table=random.standard_normal((10, 5)).astype(numpy.float32),
        last=numpy.array([-1]),
        first=numpy.array([1]),
    )


def make_node_graph(
    path: Path,
    operator: str,
    shape: list[Any],
    *,
    kind: int = TensorProto.FLOAT,
    out: list[Any] | None = None,
    **attributes: Any,
) -> Path:
    """Writes `y = operator(x)`; `y` has the type of `x`, and its shape unless `out` says."""
    node = helper.make_node(operator, ["x"], ["y"], **attributes)
    outputs = [tensor("y", kind, shape if out is None else out)]
    return save(path, [node], [tensor("x", kind, shape)], outputs)


def export_torch(path: Path) -> torch.nn.Module:
    """Exports a small network through torch.onnx, with a dynamic batch; returns the network."""
    torch.manual_seed(3)
    network = torch.nn.Sequential(
        torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3)
    ).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own, of its parts about each other
        torch.onnx.export(
            network,
            (torch.zeros(2, 4),),
            str(path),
            input_names=["x"],
            output_names=["y"],
            dynamic_shapes=[{0: torch.export.Dim("batch")}],
            dynamo=True,
            verbose=False,
        )
    return network


def load(path: Path, **others: Any) -> OnnxModel:
    model = OnnxModel()
    model.load(configure(path, **others))
    return model


def reference(path: Path, inputs: Arrays) -> Arrays:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def images(rows: int, height: int, width: int, seed: int = 0) -> Arrays:
    random = numpy.random.default_rng(seed)
    return {"image": random.standard_normal((rows, 3, height, width)).astype(numpy.float32)}


def assert_same(found: Arrays, expected: Arrays) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        numpy.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-6)
