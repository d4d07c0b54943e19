"""Measures reading and checking a chat request of 2 kB: `python -m benchmarks.request_parse`.

Prints the microseconds that one takes, of the fastest of several rounds.
"""

from __future__ import annotations

import json
import time

from truthgpt_serve.http.json_body import parse_object
from truthgpt_serve.server.text.request import ChatRequest, parse_text

BODY_BYTES = 2048
NUM_ROUNDS = 400
NUM_REQUESTS = 100


def make_body() -> bytes:
    """Returns a chat of eight messages with the usual sampling fields."""
    messages = [{"role": "user" if index % 2 else "assistant", "content": ""} for index in range(8)]
    body = {
        "model": "story",
        "messages": messages,
        "temperature": 0.7,
        "top_p": 0.9,
        "max_tokens": 256,
        "seed": 7,
        "stop": ["\n\n"],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    missing = BODY_BYTES - len(json.dumps(body))
    for index, message in enumerate(messages):
        message["content"] = "x" * (missing // 8 + (index < missing % 8))
    return json.dumps(body).encode()


def measure() -> float:
    """Returns the microseconds that reading and checking one request takes."""
    body, best = make_body(), float("inf")
    for _ in range(NUM_ROUNDS):
        started = time.perf_counter()
        for _ in range(NUM_REQUESTS):
            parse_text(ChatRequest, parse_object(body))
        best = min(best, time.perf_counter() - started)
    return best / NUM_REQUESTS * 1e6


if __name__ == "__main__":
    print(f"{measure():.1f} microseconds for a chat request of {len(make_body())} bytes")
