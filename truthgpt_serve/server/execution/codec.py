"""What one request does where the model's code runs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

Emit = Callable[[Any], Awaitable[None]]
"""Where the pieces of a stream go."""


class Exchange(Protocol):
    """One request's own steps, run where the model's code runs and never on the event loop.

    Attributes:
        done: Set by `piece` when nothing more is wanted; the generator is then closed.
    """

    done: bool

    def prepare(self) -> dict[str, Any]:
        """Returns the inputs for the model."""

    def answer(self, outputs: Any) -> Any:
        """Turns what `infer` returned into the result of the request."""

    def piece(self, item: Any) -> Any:
        """Turns one item of `stream` into something to send, or None for nothing."""

    def finish(self) -> Any:
        """Returns what is sent after the last item, or None."""


class Plain:
    """The exchange of a caller that wants the model's own inputs and outputs."""

    def __init__(self, inputs: dict[str, Any]) -> None:
        self.done = False
        self._inputs = inputs

    def prepare(self) -> dict[str, Any]:
        """Returns the inputs as they are."""
        return self._inputs

    def answer(self, outputs: Any) -> Any:
        """Returns the outputs as they are."""
        return outputs

    def piece(self, item: Any) -> Any:
        """Returns the item as it is."""
        return item

    def finish(self) -> Any:
        """Returns None: nothing follows the last item."""
        return None


class OnePiece:
    """Lets a class without `stream` answer a streaming request: all pieces are joined."""

    def __init__(self, exchange: Exchange) -> None:
        self.done = False
        self._exchange = exchange
        self.prepare = exchange.prepare
        self.piece = exchange.piece
        self.finish = exchange.finish

    def answer(self, outputs: Any) -> Any:
        """Returns the one piece and the end, joined."""
        first, last = self._exchange.piece(outputs), self._exchange.finish()
        return last if first is None else first if last is None else first + last
