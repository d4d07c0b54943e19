"""Inference requests of the Open Inference Protocol: JSON, then tensors as bytes behind it.

Reads the protocol and its binary tensor extension.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec
import numpy

from truthgpt_serve.errors import RequestError, UnsupportedError
from truthgpt_serve.server.tensors.datatypes import read_binary, read_json
from truthgpt_serve.wording import MAX_SHOWN_CHARS, shown

MAX_ID_CHARS = 512
MAX_TENSORS = 4096
"""Most inputs, and most outputs, that one request may name."""
_MAX_WHOLE_BITS = 64
_BINARY_SIZE = "binary_data_size"
_OTHER_EXTENSIONS = {
    "sequence_id": "the sequence extension",
    "sequence_start": "the sequence extension",
    "sequence_end": "the sequence extension",
    "shared_memory_region": "the shared memory extension",
    "shared_memory_offset": "the shared memory extension",
    "shared_memory_byte_size": "the shared memory extension",
    "classification": "the classification extension",
}
"""Parameters that ask for what this server does not have."""


class _Input(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Any] | None = None
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _Output(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    parameters: dict[str, Any] | None = None


_Several = msgspec.Meta(max_length=MAX_TENSORS)


class _Body(msgspec.Struct, forbid_unknown_fields=True):
    inputs: Annotated[list[_Input], _Several]
    id: str | None = None
    parameters: dict[str, Any] | None = None
    outputs: Annotated[list[_Output], _Several] | None = None


_BODY = msgspec.json.Decoder(_Body)


@dataclass(slots=True)
class InferRequest:
    """One request, read.

    Attributes:
        inputs: Each input tensor by its name, and the parameters that the class takes by theirs.
        id: The client's id of the request, or None.
        outputs: The outputs that are asked for, by name; empty for all.
        binary: Whether each of them comes as bytes.
        binary_default: Whether outputs come as bytes when the request names none.
        timeout_s: The client's own time limit in seconds, or None.
    """

    inputs: dict[str, Any]
    id: str | None = None
    outputs: tuple[str, ...] = ()
    binary: dict[str, bool] = field(default_factory=dict)
    binary_default: bool = False
    timeout_s: float | None = None

    def is_binary(self, name: str) -> bool:
        """Whether an output is to come as bytes."""
        return self.binary.get(name, self.binary_default)


def header_length(header: bytes, num_bytes: int) -> int:
    """Returns how many bytes of a body are JSON, by `Inference-Header-Content-Length`.

    Raises:
        RequestError: It is no number from 1 to the body's length.
    """
    if not header:
        return num_bytes
    if not header.isdigit() or len(header) > 18:
        text = header[:40].decode("latin-1")
        raise RequestError(f"Inference-Header-Content-Length must be a number, not {text!r}")
    length = int(header)
    if not 1 <= length <= num_bytes:
        raise RequestError(
            f"Inference-Header-Content-Length is {length}, but the body has {num_bytes} bytes"
        )
    return length


def parse_request(
    body: bytes, json_bytes: int, class_parameters: Collection[str] = ()
) -> InferRequest:
    """Reads a request.

    Args:
        body: The whole body, without compression.
        json_bytes: How much of its beginning is JSON.
        class_parameters: Names of further request parameters that the model's class takes.

    Raises:
        RequestError: The request is malformed; the message names the tensor or the place.
        UnsupportedError: It has a parameter that is not supported.
    """
    view = memoryview(body)
    parsed = _parse_json(view[:json_bytes])
    if parsed.id is not None and len(parsed.id) > MAX_ID_CHARS:
        raise RequestError(f"`id` is longer than {MAX_ID_CHARS} characters")
    request = InferRequest({}, parsed.id)
    _read_parameters(request, parsed.parameters or {}, class_parameters)
    for output in parsed.outputs or ():
        _read_output(request, output)
    _read_inputs(request, parsed.inputs, view[json_bytes:])
    return request


def _parse_json(data: memoryview) -> _Body:
    if not data:
        raise RequestError("the request has no body; send a JSON object with `inputs`")
    try:
        return _BODY.decode(data)
    except msgspec.ValidationError as error:
        raise RequestError(f"the request is not an inference request: {error}") from None
    except RecursionError:
        raise RequestError("the JSON is not valid: it is nested too deeply") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RequestError(f"the JSON is not valid: {error}") from None


# -- parameters


def _flag(value: Any, place: str) -> bool:
    if not isinstance(value, bool):
        raise RequestError(f"{place} must be true or false")
    return value


def _whole(value: Any, place: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise RequestError(f"{place} must be a whole number from 0")
    if value.bit_length() > _MAX_WHOLE_BITS:
        raise RequestError(f"{place} must be a whole number of at most {_MAX_WHOLE_BITS} bits")
    return value


def _refuse(name: str, place: str, known: Collection[str]) -> UnsupportedError:
    if name in _OTHER_EXTENSIONS:
        extension = _OTHER_EXTENSIONS[name]
        return UnsupportedError(f"{place} `{name}` belongs to {extension}, which is not here")
    return UnsupportedError(f"{place} `{name[:80]}` is not known; it takes {', '.join(known)}")


def _read_parameters(
    request: InferRequest, parameters: Mapping[str, Any], class_parameters: Collection[str]
) -> None:
    known = ("binary_data_output", "timeout", "priority", *class_parameters)
    for name, value in parameters.items():
        if name in class_parameters:
            request.inputs[name] = value
        elif name == "binary_data_output":
            request.binary_default = _flag(value, f"parameter `{name}`")
        elif name == "timeout":  # in microseconds; 0 is the default
            request.timeout_s = _whole(value, f"parameter `{name}`") / 1e6 or None
        elif name == "priority":
            if _whole(value, f"parameter `{name}`"):
                raise UnsupportedError("parameter `priority`: requests have no priorities here")
        else:
            raise _refuse(name, "parameter", known)


def _read_output(request: InferRequest, output: _Output) -> None:
    name = output.name
    if name in request.outputs:
        raise RequestError(f"output {shown(name)} is asked for twice")
    place = f"output {shown(name)}: parameter"
    for key, value in (output.parameters or {}).items():
        if key != "binary_data":
            raise _refuse(key, place, ("binary_data",))
        request.binary[name] = _flag(value, f"{place} `{key}`")
    request.outputs += (name,)


# -- tensors


def _read_inputs(request: InferRequest, inputs: list[_Input], rest: memoryview) -> None:
    sizes = [_binary_size(tensor) for tensor in inputs]
    total = sum(size or 0 for size in sizes)
    if total != len(rest):
        raise RequestError(
            f"the body has {len(rest)} bytes behind its JSON, but the inputs' binary_data_size "
            f"adds up to {total}"
        )
    at = 0
    for tensor, size in zip(inputs, sizes, strict=True):
        if tensor.name in request.inputs:
            raise RequestError(f"input {shown(tensor.name)} is given twice")
        request.inputs[tensor.name] = _read_tensor(tensor, rest[at : at + (size or 0)], size)
        at += size or 0


def _binary_size(tensor: _Input) -> int | None:
    place = f"input {shown(tensor.name)}: parameter"
    size = None
    for key, value in (tensor.parameters or {}).items():
        if key != _BINARY_SIZE:
            raise _refuse(key, place, (_BINARY_SIZE,))
        size = _whole(value, f"{place} `{key}`")
    return size


def _read_tensor(
    tensor: _Input, data: memoryview, size: int | None
) -> numpy.ndarray[Any, numpy.dtype[Any]]:
    try:
        if isinstance(tensor.data, msgspec.UnsetType):
            if size is None:
                raise RequestError("has neither `data` nor the parameter `binary_data_size`")
            return read_binary(tensor.datatype, tensor.shape, data)
        if size is not None:
            raise RequestError("has both `data` and the parameter `binary_data_size`")
        return read_json(tensor.datatype, tensor.shape, bytes(tensor.data))
    except RequestError as error:
        name = tensor.name
        param = f"inputs.{name[:MAX_SHOWN_CHARS]}"
        raise RequestError(f"input {shown(name)}: {error.message}", param=param) from None
