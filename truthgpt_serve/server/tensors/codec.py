"""An inference request's steps around `infer`."""

from __future__ import annotations

import copy
from typing import Any

import numpy

from truthgpt_serve.server.tensors.request import InferRequest
from truthgpt_serve.server.tensors.response import Arrays, check_outputs, to_arrays


class OipCodec:
    """Hands the tensors to the class, and takes its outputs as arrays.

    Args:
        request: The request, read.
        label: The class's name, for messages.
    """

    takes_long = False

    def __init__(self, request: InferRequest, label: str) -> None:
        self.done = False
        self._request = request
        self._label = label

    def inputs(self) -> dict[str, Any]:
        """Returns each input by its name, the class's own.

        A copy each time, in the machine's form and at an address that suits it: a class may write
        into its inputs, and gets them again after a batch that failed.
        """
        return {name: _copy(value) for name, value in self._request.inputs.items()}

    def encode(self, outputs: Any) -> Arrays:
        """Returns the outputs by their names.

        Raises:
            ServerError: The class returned something else.
            RequestError: The request asks for an output that is not among them.
        """
        arrays = to_arrays(outputs, f"{self._label}.infer")
        check_outputs(self._request, list(arrays))
        return arrays

    def encode_chunk(self, item: Any) -> Arrays:
        """Returns the same for an item of a stream; the protocol has no streams over HTTP."""
        return self.encode(item)

    def encode_end(self) -> None:
        """Returns None: nothing follows the last item."""


def _copy(value: Any) -> Any:
    if isinstance(value, numpy.ndarray):
        return numpy.array(value, dtype=value.dtype.newbyteorder("="), order="C")
    return copy.deepcopy(value)
