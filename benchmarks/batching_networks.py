"""Writes the benchmark's two ONNX networks, with weights of fixed seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SEED = 42
CHANNELS = (16, 32, 64)
NUM_CLASSES = 10
VOCABULARY = 1000
WIDTH = 128
NUM_HEADS = 4
NUM_LAYERS = 2


class _Graph:
    """Collects nodes and weights; every method returns the name of what it adds."""

    def __init__(self) -> None:
        self._random = np.random.default_rng(SEED)
        self._nodes: list[Any] = []
        self._weights: list[Any] = []

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"{kind}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def constant(self, values: Any, dtype: Any = np.float32) -> str:
        name = f"weight_{len(self._weights)}"
        self._weights.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def weight(self, *shape: int) -> str:
        fan_in = int(np.prod(shape[1:])) if len(shape) == 4 else shape[0]
        return self.constant(self._random.normal(0, fan_in**-0.5, shape))

    def linear(self, value: str, size_in: int, size_out: int) -> str:
        product = self.add("MatMul", value, self.weight(size_in, size_out))
        return self.add("Add", product, self.constant(np.zeros(size_out)))

    def norm(self, value: str) -> str:
        one, zero = self.constant(np.ones(WIDTH)), self.constant(np.zeros(WIDTH))
        return self.add("LayerNormalization", value, one, zero, axis=-1)

    def save(self, path: Path, inputs: Sequence[Any], value: str, output: Any) -> None:
        self._nodes.append(helper.make_node("Identity", [value], [output.name]))
        graph = helper.make_graph(self._nodes, path.stem, inputs, [output], self._weights)
        opset = helper.make_opsetid("", 20)
        model = helper.make_model(graph, opset_imports=[opset], ir_version=10)
        onnx.checker.check_model(model)
        onnx.save(model, path)


def write_vision(path: Path) -> None:
    """Writes a residual network of three stages over 3 x 32 x 32 pixels."""
    graph = _Graph()
    value, channels = "pixels", 3
    for stage, width in enumerate(CHANNELS):
        stride = 1 if stage == 0 else 2
        value = graph.add("Relu", _convolve(graph, value, channels, width, stride))
        inner = graph.add("Relu", _convolve(graph, value, width, width, 1))
        value = graph.add("Relu", graph.add("Add", value, _convolve(graph, inner, width, width, 1)))
        channels = width
    pooled = graph.add("Flatten", graph.add("GlobalAveragePool", value))
    scores = graph.add("Softmax", graph.linear(pooled, channels, NUM_CLASSES), axis=-1)
    pixels = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", 3, 32, 32])
    output = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", NUM_CLASSES])
    graph.save(path, [pixels], scores, output)


def _convolve(graph: _Graph, value: str, size_in: int, size_out: int, stride: int) -> str:
    weight, bias = graph.weight(size_out, size_in, 3, 3), graph.constant(np.zeros(size_out))
    return graph.add("Conv", value, weight, bias, pads=[1] * 4, strides=[stride] * 2)


def write_encoder(path: Path) -> None:
    """Writes a transformer encoder with masked attention and a masked mean at its end."""
    graph = _Graph()
    mask = graph.add("Unsqueeze", "mask", graph.constant([1, 2], np.int64))
    hidden = graph.add("Sub", mask, graph.constant(1.0))
    mask_bias = graph.add("Mul", hidden, graph.constant(1e9))
    value = graph.add("Gather", graph.weight(VOCABULARY, WIDTH), "ids")
    for _ in range(NUM_LAYERS):
        value = graph.add("Add", value, _attend(graph, graph.norm(value), mask_bias))
        inner = graph.add("Gelu", graph.linear(graph.norm(value), WIDTH, 4 * WIDTH))
        value = graph.add("Add", value, graph.linear(inner, 4 * WIDTH, WIDTH))
    weights = graph.add("Unsqueeze", "mask", graph.constant([2], np.int64))
    axis = graph.constant([1], np.int64)
    kept = graph.add("Mul", graph.norm(value), weights)
    total = graph.add("ReduceSum", kept, axis, keepdims=0)
    count = graph.add("ReduceSum", weights, axis, keepdims=0)
    inputs = [
        helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "length"]),
        helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["batch", "length"]),
    ]
    output = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", WIDTH])
    graph.save(path, inputs, graph.add("Div", total, count), output)


def _attend(graph: _Graph, value: str, mask_bias: str) -> str:
    split = graph.constant([0, 0, NUM_HEADS, WIDTH // NUM_HEADS], np.int64)
    queries, keys, values = (
        graph.add("Reshape", graph.linear(value, WIDTH, WIDTH), split) for _ in range(3)
    )
    queries = graph.add("Transpose", queries, perm=[0, 2, 1, 3])
    keys = graph.add("Transpose", keys, perm=[0, 2, 3, 1])
    values = graph.add("Transpose", values, perm=[0, 2, 1, 3])
    scale = graph.constant((WIDTH // NUM_HEADS) ** -0.5)
    scores = graph.add("Mul", graph.add("MatMul", queries, keys), scale)
    shares = graph.add("Softmax", graph.add("Add", scores, mask_bias), axis=-1)
    mixed = graph.add("Transpose", graph.add("MatMul", shares, values), perm=[0, 2, 1, 3])
    joined = graph.add("Reshape", mixed, graph.constant([0, 0, WIDTH], np.int64))
    return graph.linear(joined, WIDTH, WIDTH)


def write_networks(folder: Path) -> None:
    """Writes `vision.onnx` and `encoder.onnx` into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_vision(folder / "vision.onnx")
    write_encoder(folder / "encoder.onnx")
