"""A `/v1/infer` request's steps around `infer` and `stream`."""

from __future__ import annotations

from typing import Any

from truthgpt_serve.http.caller import Caller
from truthgpt_serve.http.json_body import encode_json
from truthgpt_serve.http.sse import DONE_EVENT, format_event
from truthgpt_serve.request_schema import FullText, RequestModel, bad_field
from truthgpt_serve.server.infer.counts import InferCount
from truthgpt_serve.server.infer.values import PixelBudget, decode_value, encode_value


class InferRequest(RequestModel):
    """A body of `POST /v1/infer`."""

    model: FullText
    stream: bool | None = None
    inputs: dict[str, Any]


class InferCodec:
    """Decodes the inputs, and encodes the outputs or each item of a stream.

    Args:
        request: The request.
        caller: Who asks, with the model name of the answer.
        label: The class's name, for messages.
        count: Counts what the request uses; None where that is counted elsewhere.
    """

    takes_long = False

    def __init__(
        self, request: InferRequest, caller: Caller, label: str, count: InferCount | None = None
    ) -> None:
        self.done = False
        self.caller = caller
        self._inputs = request.inputs
        self._label = label
        self._count = count
        self._head = b'{"model":' + encode_json(caller.model) + b',"outputs":'

    def inputs(self) -> dict[str, Any]:
        """Returns the inputs, arrays and images decoded.

        Raises:
            RequestError: An array or image is damaged, or the inputs are nested too deeply.
        TooLargeError: The images have too many pixels.
        """
        inputs, budget = self._inputs, PixelBudget()
        try:
            return {
                key: decode_value(value, f"inputs.{key}", budget=budget)
                for key, value in inputs.items()
            }
        except RecursionError:
            raise bad_field("inputs", "is nested too deeply") from None

    def encode(self, outputs: Any) -> bytes:
        """Returns the body of the whole answer."""
        if self._count is not None:
            self._count.add(outputs)
            self._count.end()
        return self._head + encode_value(outputs, f"{self._label}.infer") + b"}"

    def encode_chunk(self, item: Any) -> bytes:
        """Returns the event for one item of `stream`."""
        if self._count is not None:
            self._count.add(item)
        return format_event(self._head + encode_value(item, f"{self._label}.stream") + b"}")

    def encode_end(self) -> bytes:
        """Returns the last event."""
        if self._count is not None:
            self._count.end()
        return DONE_EVENT
