"""Answers of the Open Inference Protocol: a class's outputs as JSON with bytes behind it."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy

from truthgpt_serve.errors import RequestError, ServerError
from truthgpt_serve.http.json_body import encode_json
from truthgpt_serve.http.open_inference import MODEL_VERSION
from truthgpt_serve.server.tensors.datatypes import NAMES, datatype_of, write_binary, write_json
from truthgpt_serve.server.tensors.request import InferRequest
from truthgpt_serve.wording import shown

Arrays = dict[str, numpy.ndarray[Any, numpy.dtype[Any]]]


def to_arrays(outputs: Any, label: str) -> Arrays:
    """Returns a class's outputs as arrays that the protocol can carry.

    Args:
        outputs: What `infer` returned: a dict of output name to array; tensors of torch, lists and
            numbers are made into arrays.
        label: `Class.infer`, for messages.

    Raises:
        ServerError: It is something else; the message names it.
    """
    if not isinstance(outputs, Mapping):
        raise ServerError(
            f"{label} returned {type(outputs).__name__}; a tensor model returns a dict of output "
            "name to array"
        )
    return {str(name): _to_array(value, name, label) for name, value in outputs.items()}


def _to_array(value: Any, name: Any, label: str) -> numpy.ndarray[Any, numpy.dtype[Any]]:
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = (value.float() if value.dtype is torch.bfloat16 else value).numpy()
    try:
        array = numpy.asarray(value)
    except ValueError as error:
        raise ServerError(f"{label}: output {name!r} is not an array: {error}") from error
    if datatype_of(array) is None:
        known = ", ".join([*NAMES, "bytes"])
        raise ServerError(
            f"{label}: output {name!r} has dtype {array.dtype}, which the Open Inference Protocol "
            f"does not have; it has {known}"
        )
    return array


def encode_answer(arrays: Arrays, request: InferRequest, model: str) -> tuple[bytes, int | None]:
    """Returns the body of an answer, and how many of its bytes are JSON if others follow.

    Raises:
        RequestError: The request names an output that there is not, or asks for one as JSON that
            JSON cannot carry.
    """
    check_outputs(request, list(arrays))
    described: list[dict[str, Any]] = []
    parts: list[bytes] = []
    for name in request.outputs or arrays:
        array = arrays[name]
        output: dict[str, Any] = {
            "name": name,
            "datatype": datatype_of(array),
            "shape": list(array.shape),
        }
        if request.is_binary(name):
            parts.append(write_binary(array))
            output["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            try:
                output["data"] = write_json(array)
            except RequestError as error:
                raise RequestError(f"output {name!r} {error.message}") from None
        described.append(output)
    answer: dict[str, Any] = {"model_name": model, "model_version": MODEL_VERSION}
    if request.id is not None:
        answer["id"] = request.id
    head = encode_json({**answer, "outputs": described})
    return b"".join((head, *parts)), len(head) if parts else None


def check_outputs(request: InferRequest, known: Sequence[str]) -> None:
    """Raises RequestError when the request asks for an output that is not among `known`."""
    for name in request.outputs:
        if name not in known:
            raise RequestError(
                f"the model has no output {shown(name)}; it has {', '.join(known) or 'none'}"
            )
