"""Cuts a model's text: the repeated prompt in front, a stop string behind."""

from __future__ import annotations


class TextFilter:
    """Takes the deltas of one answer and gives what the client may see.

    If the text begins with the exact prompt, the prompt is removed. The first stop string ends the
    text before it. What may still turn out to be either is held back.

    Attributes:
        stop: The stop string that was found, or None.
    """

    def __init__(self, prompt: str, stops: list[str]) -> None:
        self.stop: str | None = None
        self._prompt = prompt
        self._stops = stops
        self._held_prompt = ""
        self._held = ""
        self._hold = max(map(len, stops), default=1) - 1

    @property
    def stopped(self) -> bool:
        """Whether a stop string was found: nothing follows."""
        return self.stop is not None

    @property
    def transparent(self) -> bool:
        """Whether every further delta passes as it is."""
        return not self._prompt and not self._stops

    def push(self, delta: str) -> str:
        """Takes a delta; returns the text that is certain by now."""
        if self._prompt:
            delta = self._past_prompt(delta)
        return self._before_stop(delta) if self._stops else delta

    def flush(self) -> str:
        """Returns what was held back, at the end of the text."""
        held, self._held_prompt = self._held_prompt, ""
        self._prompt = ""
        if not self._stops:
            return held
        text = self._before_stop(held)
        text, self._held = text + self._held, ""
        return text

    def _past_prompt(self, delta: str) -> str:
        text = self._held_prompt + delta
        if text.startswith(self._prompt):
            text = text[len(self._prompt) :]
        elif self._prompt.startswith(text):
            self._held_prompt = text
            return ""
        self._held_prompt = self._prompt = ""
        return text

    def _before_stop(self, delta: str) -> str:
        if self.stopped:
            return ""
        text = self._held + delta
        found = [(at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            cut, self.stop = min(found, key=lambda one: one[0])
            self._held = ""
            return text[:cut]
        keep = self._open_end(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _open_end(self, text: str) -> int:
        """Returns how many of the last characters may be the beginning of a stop string."""
        for size in range(min(self._hold, len(text)), 0, -1):
            if any(stop.startswith(text[-size:]) for stop in self._stops):
                return size
        return 0
