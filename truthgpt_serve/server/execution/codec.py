"""What one request does where the model's code runs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

Emit = Callable[[Any], Awaitable[None]]
"""Where the pieces of a stream go."""


class RequestCodec(Protocol):
    """One request's own steps, run where the model's code runs and never on the event loop.

    Attributes:
        done: Set by `piece` when nothing more is wanted; the generator is then closed.
    """

    done: bool

    @property
    def takes_long(self) -> bool:
        """Whether `inputs` may take long enough for others to notice; never for a usual request."""

    def inputs(self) -> dict[str, Any]:
        """Returns the inputs for the model."""

    def encode(self, outputs: Any) -> Any:
        """Turns what `infer` returned into the result of the request."""

    def encode_chunk(self, item: Any) -> Any:
        """Turns one item of `stream` into something to send, or None for nothing."""

    def encode_end(self) -> Any:
        """Returns what is sent after the last item, or None."""


class PlainCodec:
    """The codec of a caller that wants the model's own inputs and outputs."""

    takes_long = False

    def __init__(self, inputs: dict[str, Any]) -> None:
        self.done = False
        self._inputs = inputs

    def inputs(self) -> dict[str, Any]:
        """Returns the inputs as they are."""
        return self._inputs

    def encode(self, outputs: Any) -> Any:
        """Returns the outputs as they are."""
        return outputs

    def encode_chunk(self, item: Any) -> Any:
        """Returns the item as it is."""
        return item

    def encode_end(self) -> Any:
        """Returns None: nothing follows the last item."""
        return None


class OnePiece:
    """Lets a class without `stream` answer a streaming request: all pieces are joined."""

    def __init__(self, codec: RequestCodec) -> None:
        self.done = False
        self._codec = codec
        self.takes_long = codec.takes_long
        self.inputs = codec.inputs
        self.encode_chunk = codec.encode_chunk
        self.encode_end = codec.encode_end

    def encode(self, outputs: Any) -> Any:
        """Returns the one piece and the end, joined."""
        first, last = self._codec.encode_chunk(outputs), self._codec.encode_end()
        return last if first is None else first if last is None else first + last
