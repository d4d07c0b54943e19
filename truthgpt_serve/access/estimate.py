"""Says before the work how many tokens a request may use: from its body, and the key's past."""

from __future__ import annotations

from typing import Any

import msgspec

MAX_READ_BYTES = 65536
"""Bodies up to this size are read; a longer one has images or audio in it, or is a long text."""
BYTES_A_TOKEN = 4
MAX_TOKENS = 256
"""Of an answer whose request says nothing, of a key without a past; and what a past of shorter
answers does not go below, as the next one may be longer."""
MAX_ASKED = 10_000_000
_LIMITS = ("max_completion_tokens", "max_tokens", "max_output_tokens", "max_new_tokens")
_Asked = msgspec.defstruct("_Asked", [(name, Any, None) for name in (*_LIMITS, "n")])
_decode = msgspec.json.Decoder(_Asked).decode
_MAX_KEYS = 4096
_NEW_SHARE = 0.2
"""How much the newest request counts in the mean."""


class TokenEstimate:
    """What the requests of each key use, as far as this process has seen them."""

    def __init__(self) -> None:
        self._means: dict[str, tuple[float, float]] = {}

    def estimate(self, key: str, body: bytes | None, num_bytes: int) -> float:
        """Returns how many tokens a request may use.

        Args:
            key: The name of its key.
            body: The body, or None if it was not read; a long one is not looked at.
            num_bytes: Its size as far as it is known.
        """
        mean = self._means.get(key)
        asked = None if body is None or len(body) > MAX_READ_BYTES else _asked_tokens(body)
        if asked is None:  # a form, or a body that is too long to be read
            return sum(mean) if mean is not None else num_bytes / BYTES_A_TOKEN + MAX_TOKENS
        limit, number = asked
        answer = float(MAX_TOKENS if limit is None else limit) * number
        if mean is not None:
            answer = min(answer, max(mean[1], MAX_TOKENS))
        return num_bytes / BYTES_A_TOKEN + answer

    def learn(self, key: str, num_prompt: int, num_completion: int) -> None:
        """Notes how many tokens a request used."""
        old = self._means.pop(key, None)
        new = (float(num_prompt), float(num_completion))
        if old is not None:
            new = (
                old[0] + _NEW_SHARE * (new[0] - old[0]),
                old[1] + _NEW_SHARE * (new[1] - old[1]),
            )
        if len(self._means) >= _MAX_KEYS:  # the one that was noted longest ago
            del self._means[next(iter(self._means))]
        self._means[key] = new


def _asked_tokens(body: bytes) -> tuple[int | None, int] | None:
    """Returns the most tokens of one answer, and how many answers; None for what is no request."""
    try:
        asked: Any = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    limits = (_count(getattr(asked, name)) for name in _LIMITS)
    limit = next((limit for limit in limits if limit is not None), None)
    return limit, min(_count(asked.n) or 1, 1000)


def _count(value: Any) -> int | None:
    return min(value, MAX_ASKED) if type(value) is int and value > 0 else None
