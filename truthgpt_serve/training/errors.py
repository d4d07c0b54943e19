"""The errors of a training run."""

from __future__ import annotations

from truthgpt_serve.errors import TruthGPTError


class TrainingError(TruthGPTError):
    """A run that cannot start or go on; the message says where it stands and what to do."""


MAX_REASON = 500
"""Characters of another program's error that one line of ours has."""


def one_line(error: BaseException) -> str:
    """Returns what an error says, its first and its last line, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = type(error).__name__
    if lines:
        text = lines[0] if len(lines) == 1 else f"{lines[0]} {lines[-1]}"
    return text if len(text) <= MAX_REASON else f"{text[: MAX_REASON - 1]}…"
