"""The mark of answers to requests that reached no model and may be sent again.

Two give it: the proxy, when a model has no replica that takes a connection, and the router, when a
request for a model's own address came to it because the proxy does not know that address yet. A
proxy that is being replaced by its successor does both: it answers once more on each connection
that it has, as it was configured before.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

HEADER = (b"x-truthgpt-unreached", b"1")
RETRY_AFTER_S = 1
READABLE = (
    ("access-control-allow-origin", "*"),
    ("access-control-expose-headers", "retry-after"),
)
"""Headers of answers that the proxy gives itself, which knows no `cors`: pages of every origin may
read them, and no model's answer is among them. Without them a page could not tell 503 from a
network that is gone.
"""


def is_unreached(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether an answer with these headers, names in lower case, has the mark."""
    return HEADER in headers


def proxy_page() -> bytes:
    """Returns the proxy's whole answer, head and body, in OpenAI's envelope."""
    message = "The model has no replica that takes requests; try again in a few seconds"
    error = {
        "message": message,
        "type": "service_unavailable",
        "param": None,
        "code": "model_unavailable",
    }
    body = json.dumps({"error": error}).encode()
    lines = [
        b"HTTP/1.1 503 Service Unavailable",
        b"content-type: application/json",
        b"content-length: %d" % len(body),
        b"cache-control: no-cache",
        *(f"{name}: {value}".encode() for name, value in READABLE),
        b"retry-after: %d" % RETRY_AFTER_S,
        b": ".join(HEADER),
    ]
    return b"\r\n".join([*lines, b"", body])
