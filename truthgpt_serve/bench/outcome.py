"""What is sent and what came of it: one request, its answer's times, and the kinds of failure."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import Any

MAX_DETAIL = 300
"""Characters of an error's text that are kept."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request to send.

    Attributes:
        prompt: A text, token ids, or the messages of a chat.
        input_len: Its length as asked for, in tokens or words; the server's count replaces it.
        output_len: Most tokens of the answer; None leaves it to the server.
        offset_s: When it is sent, in seconds from the start; only in a trace.
    """

    prompt: str | list[int] | list[dict[str, Any]]
    input_len: int
    output_len: int | None = None
    offset_s: float | None = None


@dataclass(slots=True)
class Outcome:
    """What came of one request.

    Attributes:
        start_s: When it was sent, on the clock of the measurement.
        queue_s: How long it had waited for its turn in this client.
        ttft_s: Seconds from sending to the first event with a choice.
        itls_s: Seconds between such events.
        latency_s: Seconds from sending to the last of them; without a stream, to the whole answer.
        input_tokens: As the server counts them, else as asked for.
        output_tokens: As the server counts them, else the events that carry text.
        has_usage: Whether the server has counted the output tokens.
        error: The kind of failure, empty for a success.
        detail: The failure's text.
        text: The generated text, where it is kept.
    """

    start_s: float = 0.0
    queue_s: float = 0.0
    ttft_s: float = 0.0
    itls_s: array[float] = field(default_factory=lambda: array("d"))
    latency_s: float = 0.0
    input_tokens: int = 0
    output_tokens: int = 0
    has_usage: bool = False
    error: str = ""
    detail: str = ""
    text: str = ""

    @property
    def ok(self) -> bool:
        """Whether the answer was whole."""
        return not self.error

    @property
    def tpot_s(self) -> float:
        """Seconds per output token after the first; 0.0 for an answer of one token."""
        if self.output_tokens <= 1:
            return 0.0
        return (self.latency_s - self.ttft_s) / (self.output_tokens - 1)

    def fail(self, kind: str, detail: str = "") -> None:
        """Marks it as failed; the first failure stays."""
        if not self.error:
            self.error, self.detail = kind, detail[:MAX_DETAIL]
