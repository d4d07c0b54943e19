"""Exports a text model as an .onnx file with a cache of keys and values, by transformers.

Inputs and outputs get the names of Optimum's exports, which `family: onnxruntime` and
Transformers.js read.
"""

from __future__ import annotations

import contextlib
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy
import onnx_ir
import onnxruntime
import torch
from transformers import DynamicCache
from transformers.exporters import OnnxConfig, OnnxExporter

from truthgpt_serve.takeaway.errors import TakeawayError
from truthgpt_serve.takeaway.output import check_room, writing
from truthgpt_serve.takeaway.result import Result
from truthgpt_serve.takeaway.text.models import (
    copy_side_files,
    first_line,
    load_merged,
    load_tokenizer,
)
from truthgpt_serve.training.text.quantized import weight_bytes

FILE = "model.onnx"
MAX_INLINE_BYTES = 1 << 30
"""Larger weights stand in a file of their own: a protocol buffer holds 2 GiB."""
MAX_DIFFERENCE = {"float32": 1e-3, "float16": 5e-2}
"""How far a logit may be from the model's, relative to the largest one."""
BATCH, PAST, NEW = 2, 3, 4
"""Sizes while the graph is traced, all different and above 1, so that none becomes a constant."""
_CACHE = re.compile(r"(?:input\.|output\.)?past_key_values\.layers\.(\d+)\.(key|value)s")


def export(result: Result, out: Path, *, dtype: str | None, **_: Any) -> list[str]:
    """Writes the folder of an .onnx file with tokenizer and configurations.

    Args:
        result: An adapter, which is merged, or a whole model.
        out: The folder, see `check_output`.
        dtype: `float32`, the default, or `float16`.

    Returns:
        Lines on what was done.

    Raises:
        TakeawayError: The model cannot be traced, or the graph computes something else.
    """
    kind = dtype or "float32"
    if kind not in MAX_DIFFERENCE:
        fix = f"write one of {', '.join(MAX_DIFFERENCE)}"
        raise TakeawayError(f"--dtype {kind}: ONNX Runtime has no kernels for it ({fix})")
    model, _difference = load_merged(result, kind)
    if not model.can_generate() or model.config.is_encoder_decoder:
        raise TakeawayError(f"{result.folder}: only decoders of texts are exported to ONNX")
    tokenizer = load_tokenizer(result)
    size = weight_bytes(model)
    check_room(out, size)
    program = _trace(model)
    with writing(out) as folder:
        program.save(str(folder / FILE), external_data=size > MAX_INLINE_BYTES)
        model.config.save_pretrained(str(folder))
        model.generation_config.save_pretrained(str(folder))
        if tokenizer is not None:
            tokenizer.save_pretrained(str(folder))
        copy_side_files(result, folder)
        difference = _compare(model, folder / FILE, MAX_DIFFERENCE[kind])
    return [f"largest difference of a logit to the model: {difference:.2g}"]


def _trace(model: Any) -> Any:
    """Returns the program with its inputs and outputs named."""
    model.config.use_cache = True
    free = torch.export.Dim.AUTO
    try:
        with torch.no_grad(), contextlib.redirect_stdout(sys.stderr):
            tokens = torch.arange(BATCH * PAST).reshape(BATCH, PAST) % model.config.vocab_size
            cache = model(input_ids=tokens, past_key_values=DynamicCache()).past_key_values
            layers = len(cache.layers)
            new = torch.arange(BATCH * NEW).reshape(BATCH, NEW) % model.config.vocab_size
            inputs = {
                "input_ids": new,
                "attention_mask": torch.ones(BATCH, PAST + NEW, dtype=torch.int64),
                "position_ids": torch.arange(PAST, PAST + NEW).repeat(BATCH, 1),
                "past_key_values": cache,
            }
            shapes: dict[str, Any] = {name: {0: free, 1: free} for name in inputs}
            shapes["past_key_values"] = [{0: free, 2: free}] * (2 * layers)
            config = OnnxConfig(dynamic=True, dynamic_shapes=shapes)
            with warnings.catch_warnings():
                # torch's exporter uses parts of torch that it calls deprecated.
                warnings.simplefilter("ignore")
                program = OnnxExporter().export(model, inputs, config=config)
    except Exception as error:  # of many kinds, from torch.export, onnxscript and the model
        kind = type(model).__name__
        raise TakeawayError(f"{kind} cannot be exported to ONNX: {first_line(error)}") from error
    _name(program.model.graph)
    return program


def _name(graph: Any) -> None:
    """Names inputs, outputs and their free axes."""
    for values, cache, length in (
        (graph.inputs, "past_key_values", "past_sequence_length"),
        (graph.outputs, "present", "total_sequence_length"),
    ):
        for value in values:
            axes = ["batch_size", "sequence_length", *value.shape[2:]]
            if (found := _CACHE.fullmatch(value.name)) is not None:
                value.name = f"{cache}.{found[1]}.{found[2]}"
                axes = ["batch_size", value.shape[1], length, value.shape[3]]
            elif value.name == "attention_mask":
                axes = ["batch_size", "total_sequence_length"]
            value.shape = onnx_ir.Shape(axes)


def _compare(model: Any, file: Path, limit: float) -> float:
    """Returns how far the graph's logits are from the model's: a prompt, then one more token.

    Raises:
        TakeawayError: Too far.
    """
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    shapes = {value.name: value.shape for value in session.get_inputs()}
    kind = {torch.float32: "float32", torch.float16: "float16"}[model.dtype]
    caches = {
        name: numpy.zeros((1, shape[1], 0, shape[3]), kind)
        for name, shape in shapes.items()
        if name.startswith("past_key_values.")
    }
    tokens = numpy.arange(1, NEW + 2)[None] % model.config.vocab_size
    found = []
    for start, end in ((0, NEW), (NEW, NEW + 1)):
        arrays = {
            "input_ids": tokens[:, start:end],
            "attention_mask": numpy.ones((1, end), numpy.int64),
            "position_ids": numpy.arange(start, end)[None],
        }
        fed = {name: array for name, array in arrays.items() if name in shapes}
        outputs = dict(zip(names, session.run(None, {**fed, **caches}), strict=True))
        found.append(outputs["logits"].astype("float32"))
        caches = {name: outputs[f"present.{name.partition('.')[2]}"] for name in caches}
    with torch.no_grad():
        wanted = model(input_ids=torch.from_numpy(tokens)).logits.float().numpy()
    difference = float(numpy.abs(numpy.concatenate(found, axis=1) - wanted).max())
    if not difference <= limit * max(1.0, float(numpy.abs(wanted).max())):
        message = f"its logits differ from the model's by {difference:.3g}"
        raise TakeawayError(f"{type(model).__name__} cannot be exported to ONNX: {message}")
    return difference
