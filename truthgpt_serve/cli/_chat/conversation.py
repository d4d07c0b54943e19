"""A conversation with a model: its messages, and how the next answer is asked for."""

from __future__ import annotations

import json
import time
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from truthgpt_serve.cli._service.client import ServiceClient

PATH = "/v1/chat/completions"
Message = dict[str, str]


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of an answer.

    Attributes:
        text: Of the answer itself.
        reasoning: Of what the model thinks before it answers.
    """

    text: str = ""
    reasoning: str = ""


@dataclass(slots=True)
class Statistics:
    """How the last answer came.

    Attributes:
        first_s: Seconds to its first piece, or None.
        total_s: Seconds to its end.
        num_tokens: Its tokens as the service counts them, or None.
        finish: Why it ended: `stop`, `length` or another reason of the API, or None.
    """

    first_s: float | None = None
    total_s: float = 0.0
    num_tokens: int | None = None
    finish: str | None = None


@dataclass(slots=True)
class Conversation:
    """What has been said so far.

    Attributes:
        model: The model that answers next.
        system: The system prompt, or None.
        options: Fields of each request, such as `temperature`.
        messages: Without the system prompt.
        last: How the last answer came.
    """

    model: str
    system: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    messages: list[Message] = field(default_factory=list)
    last: Statistics = field(default_factory=Statistics)

    def ask(self, client: ServiceClient, text: str) -> Generator[Piece, None, None]:
        """Yields the answer to a text as it comes.

        Both are added to the messages, also when the answer is left before its end; neither is when
        there is no answer at all.

        Raises:
            ServiceFault: The service refused, or failed in the middle.
        """
        started_s = time.perf_counter()
        self.last = Statistics()
        said: list[str] = []
        self.messages.append({"role": "user", "content": text})
        try:
            with client.stream(PATH, self._request()) as events:
                for event in events:
                    piece = self._take(event)
                    if piece is None:
                        continue
                    if self.last.first_s is None:
                        self.last.first_s = time.perf_counter() - started_s
                    said.append(piece.text)
                    yield piece
        finally:
            self.last.total_s = time.perf_counter() - started_s
            if said:
                self.messages.append({"role": "assistant", "content": "".join(said)})
            else:
                self.messages.pop()

    def _request(self) -> dict[str, Any]:
        return {"model": self.model, "messages": self.whole(), **self.options}

    def _take(self, event: dict[str, Any]) -> Piece | None:
        """Returns the piece in an event, or None; keeps the end's reason and the usage."""
        usage = event.get("usage")
        if isinstance(usage, dict) and isinstance(usage.get("completion_tokens"), int):
            self.last.num_tokens = usage["completion_tokens"]
        choices = event.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(choice, dict):
            return None
        if isinstance(choice.get("finish_reason"), str):
            self.last.finish = choice["finish_reason"]
        delta = choice.get("delta")
        if not isinstance(delta, dict):
            return None
        text, thought = delta.get("content"), delta.get("reasoning", delta.get("reasoning_content"))
        piece = Piece(
            text if isinstance(text, str) else "", thought if isinstance(thought, str) else ""
        )
        return piece if piece.text or piece.reasoning else None

    def whole(self) -> list[Message]:
        """Returns all messages, the system prompt first."""
        first = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*first, *self.messages]

    def save(self, path: Path) -> None:
        """Writes the messages into a new file: Markdown for `.md`, else JSON.

        Raises:
            FileExistsError: The file is there already.
            OSError: It cannot be written.
            UnicodeEncodeError: A message has half a character.
        """
        if path.suffix.lower() in (".md", ".txt"):
            parts = [f"**{each['role']}**\n\n{each['content']}\n" for each in self.whole()]
            text = "\n".join([f"# {self.model}\n", *parts])
        else:
            value = {"model": self.model, "messages": self.whole()}
            text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
        data = text.encode()  # before there is a file
        with path.open("xb") as file:
            file.write(data)
