"""The interface of the two ways of batching."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from deployments.hf_transformers.generation.job import TextJob


@dataclass(frozen=True, slots=True)
class Update:
    """News of one text.

    Attributes:
        name: The job's name.
        tokens: Token ids that are new.
        error: Why it failed, or None.
    """

    name: str
    tokens: list[int]
    error: str | None = None


class Backend(Protocol):
    """Makes tokens for many texts at the same time, in a thread of its own.

    Attributes:
        kind: `continuous` or `padded`.
        max_tokens: Most tokens of prompt and answer together that it can hold, or None.
    """

    kind: str
    max_tokens: int | None

    def submit(self, job: TextJob) -> None:
        """Takes a text; never blocks.

        Raises:
            UnavailableError: The thread is dead.
        """

    def cancel(self, job: TextJob) -> None:
        """Gives up a text that is not finished: its place is free after the next token."""

    def poll(self, timeout_s: float) -> list[Update]:
        """Waits for news of any text; called by one thread only."""

    def failure(self) -> BaseException | None:
        """Returns why no more tokens can come, or None while it works."""

    def close(self, timeout_s: float) -> None:
        """Ends the thread and frees the memory; safe to call twice."""
