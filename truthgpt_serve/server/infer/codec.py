"""A `/v1/infer` request's steps around `infer` and `stream`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from truthgpt_serve.http.json_body import encode_json
from truthgpt_serve.http.sse import DONE_EVENT, format_event
from truthgpt_serve.request_schema import FullText, RequestModel, bad_field, read_request
from truthgpt_serve.server.infer.values import decode_value, encode_value


class InferRequest(RequestModel):
    """A body of `POST /v1/infer`."""

    model: FullText
    stream: bool | None = None
    inputs: dict[str, Any]


class InferCodec:
    """Decodes the inputs, and encodes the outputs or each item of a stream.

    Args:
        body: The request, `{"model", "inputs", "stream"?}`.
        label: The class's name, for messages.

    Attributes:
        model: The model name of the request, and of the answer.
        stream: Whether the answer comes as server-sent events.

    Raises:
        RequestError: A field is missing or wrong.
    """

    def __init__(self, body: Mapping[str, Any], label: str) -> None:
        self.done = False
        request = read_request(InferRequest, body)
        self.name_model(request.model)
        self.stream = bool(request.stream)
        self._inputs = request.inputs
        self._label = label

    def name_model(self, name: str) -> None:
        """Sets the model name of the answer."""
        self.model = name
        self._head = b'{"model":' + encode_json(name) + b',"outputs":'

    def inputs(self) -> dict[str, Any]:
        """Returns the inputs, arrays and images decoded.

        Raises:
            RequestError: An array or image is damaged, or the inputs are nested too deeply.
        """
        inputs = self._inputs
        try:
            return {key: decode_value(value, f"inputs.{key}") for key, value in inputs.items()}
        except RecursionError:
            raise bad_field("inputs", "is nested too deeply") from None

    def encode(self, outputs: Any) -> bytes:
        """Returns the body of the whole answer."""
        return self._head + encode_value(outputs, f"{self._label}.infer") + b"}"

    def encode_chunk(self, item: Any) -> bytes:
        """Returns the event for one item of `stream`."""
        return format_event(self._head + encode_value(item, f"{self._label}.stream") + b"}")

    def encode_end(self) -> bytes:
        """Returns the last event."""
        return DONE_EVENT
