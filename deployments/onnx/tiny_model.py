"""Makes the small ONNX model of configs/models/tiny-vision.yaml: `python -m` this module.

Its weights are random, with a fixed seed. Needs the package onnx, which serving does not.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy
import onnx
from onnx import TensorProto, helper, numpy_helper

OPERATORS = 18
IR_VERSION = 9
NUM_CHANNELS = 4


def make_tiny_vision(path: Path, *, num_classes: int = 3, seed: int = 7) -> Path:
    """Writes a convolution network: `image`, float32 [batch, 3, height, width], to `scores`.

    Args:
        path: The .onnx file; its folder is made.
        num_classes: Size of the last axis of `scores`.
        seed: Of the weights.
    """
    random = numpy.random.default_rng(seed)
    weights = {
        "kernel": random.standard_normal((NUM_CHANNELS, 3, 3, 3)),
        "classes": random.standard_normal((NUM_CHANNELS, num_classes)),
    }
    nodes = [
        helper.make_node("Conv", ["image", "kernel"], ["maps"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["maps"], ["positive"]),
        helper.make_node("GlobalAveragePool", ["positive"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "classes"], ["scores"]),
    ]
    axes = ["batch", 3, "height", "width"]
    graph = helper.make_graph(
        nodes,
        "tiny-vision",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, axes)],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", num_classes])],
        [
            numpy_helper.from_array(array.astype(numpy.float32), name)
            for name, array in weights.items()
        ],
    )
    operators = [helper.make_opsetid("", OPERATORS)]
    model = helper.make_model(graph, opset_imports=operators, ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return path


def main() -> None:
    """Reads the command line and writes the file."""
    parser = argparse.ArgumentParser(description="Makes a small ONNX model.")
    parser.add_argument("--out", type=Path, default=Path(".models/tiny-vision.onnx"))
    print(make_tiny_vision(parser.parse_args().out))


if __name__ == "__main__":
    main()
