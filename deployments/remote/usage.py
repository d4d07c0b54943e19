"""Reads from a server's answers how many tokens they cost, for requests that have a key.

A stream of OpenAI's text routes says it only if it is asked to: the request asks for it then, and
what the client did not ask for is taken out of the answer again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from truthgpt_serve.http.sse import read_data, split_events
from truthgpt_serve.usage.counted import Usage

MAX_READ_BYTES = 65536
"""Requests and answers up to this size are read whole, as that takes the event loop's time. Of a
longer answer, which has images or vectors in it, the end is looked at."""
TAIL_BYTES = 4096
BYTES_A_TOKEN = 4
_ASKED = ("/chat/completions", "/completions")
_WITH_TEXT = (*_ASKED, "/responses", "/messages")
_WITH_PROMPT = (*_WITH_TEXT, "/embeddings")
_TEXTS = ("content", "text", "arguments", "reasoning", "reasoning_content")
"""Fields of answers that hold what was generated."""
_NEEDED = b'"usage"'
_USAGE = re.compile(rb'"usage"\s*+:\s*+(\{(?:[^{}]|\{[^{}]*+\})*+\})')
_FILE = re.compile(rb"[A-Za-z0-9+/=_-]{1024,}+")
_PROMPT, _COMPLETION = ("prompt_tokens", "input_tokens"), ("completion_tokens", "output_tokens")


def ask_for_usage(path: str, body: bytes) -> bytes | None:
    """Returns a streaming request that asks for its tokens, or None if it needs no change.

    Args:
        path: Its path.
        body: Its body as it came.
    """
    if not path.endswith(_ASKED) or len(body) > MAX_READ_BYTES or b'"stream"' not in body:
        return None
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or found.get("stream") is not True or "stream_options" in found:
        return None
    end = body.rindex(b"}")  # the rest stays byte for byte
    return body[:end] + b',"stream_options":{"include_usage":true}' + body[end:]


def about_prompt(path: str, body: bytes) -> int:
    """Returns about how many tokens the prompt of a request has; 0 on routes without one.

    Files in it, which are long runs of base64, do not count.

    Args:
        path: Its path.
        body: Its body.
    """
    if not path.endswith(_WITH_PROMPT):
        return 0
    files = sum(match.end() - match.start() for match in _FILE.finditer(body))
    return (len(body) - files) // BYTES_A_TOKEN


def generates_text(path: str) -> bool:
    """Returns whether answers on a route are generated text."""
    return path.endswith(_WITH_TEXT)


class UsageReader:
    """Reads one answer as it passes.

    Args:
        usage: Gets what the answer says at its end.
        hides: Whether the last chunk of a stream, which has nothing but the tokens, is taken out.
        about: About how many tokens the prompt has, where the answer does not say it, or its client
            leaves before that.
        is_text: Whether a body that does not say its tokens has as many as its text is long.
    """

    def __init__(self, usage: Usage, *, hides: bool, about: int = 0, is_text: bool = False) -> None:
        self._hides = hides
        self._about = about
        self._is_text = is_text
        self._num_bytes = self._about_answer = 0
        self._prompt = self._completion = self._cached = self._num_events = 0
        self._held = bytearray()
        self._is_cut = False
        usage.at_end.append(self._add)

    def events(self, data: bytes) -> bytes:
        """Takes whole events of a stream; returns those that pass."""
        if _NEEDED not in data:
            self._num_events += data.count(b"data:")
            return data
        kept = b""
        for event in split_events(data):
            found = next((_read(text) for text in read_data(event)), None)
            if found is None or not self._take(found):
                self._num_events += 1
            elif self._hides and found.get("choices") == []:
                continue
            kept += event
        return kept

    def piece(self, data: bytes, *, more: bool) -> None:
        """Takes a piece of a JSON body."""
        self._num_bytes += len(data)
        self._held += data
        if len(self._held) > MAX_READ_BYTES:
            self._is_cut = True
            del self._held[:-TAIL_BYTES]
        if more:
            return
        found = _read(bytes(self._held)) if not self._is_cut else _find_usage(bytes(self._held))
        if (found is None or not self._take(found)) and self._is_text:
            num_bytes = self._num_bytes if self._is_cut else _text_length(found)
            self._about_answer = num_bytes // BYTES_A_TOKEN

    def _take(self, found: Mapping[str, Any]) -> bool:
        """Takes the tokens of an event or a body; returns whether it has some."""
        inner = found.get("response") or found.get("message")
        places = (found.get("usage"), inner.get("usage") if isinstance(inner, dict) else None)
        usage = next((place for place in places if isinstance(place, dict)), None)
        if usage is None:
            return False
        self._prompt = max(self._prompt, *(_number(usage, name) for name in _PROMPT))
        self._completion = max(self._completion, *(_number(usage, name) for name in _COMPLETION))
        for name in ("prompt_tokens_details", "input_tokens_details"):
            if isinstance(details := usage.get(name), dict):
                self._cached = max(self._cached, _number(details, "cached_tokens"))
        self._cached = max(self._cached, _number(usage, "cache_read_input_tokens"))
        return True

    def _add(self, usage: Usage) -> None:
        usage.prompt_tokens += self._prompt or self._about
        usage.cached_tokens += min(self._cached, self._prompt)
        # A stream that broke off, or of a server that does not tell: an event is a token.
        about = self._about_answer or max(0, self._num_events - 1)
        usage.completion_tokens += self._completion or about


def _text_length(found: Any) -> int:
    """Returns the length of what an answer's body has generated."""
    number, left = 0, [found]
    while left:
        part = left.pop()
        if isinstance(part, list):
            left += part
        elif isinstance(part, dict):
            texts = [part[name] for name in _TEXTS if isinstance(part.get(name), str)]
            number += sum(map(len, texts))
            left += [value for value in part.values() if isinstance(value, dict | list)]
    return number


def _find_usage(tail: bytes) -> dict[str, Any] | None:
    """Returns what the end of a long body says of its tokens."""
    found = _USAGE.findall(tail)
    usage = _read(found[-1]) if found else None
    return None if usage is None else {"usage": usage}


def _read(data: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _number(usage: Mapping[str, Any], name: str) -> int:
    value = usage.get(name)
    return value if type(value) is int and 0 <= value < 1 << 40 else 0
