"""Mixed streams and unary requests on all ways at once, each answer read to its end."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlsplit

from benchmarks.chaos.words import MARK
from truthgpt_serve.cluster.haproxy.direct import WAY_HEADER

WAYS = ("direct", "router", "mounted")
PATH = "/v1/completions"
LIMIT_S = 60.0
PAUSE_S = 0.2
"""How long a client waits after a failure."""
STREAM_TOKENS, UNARY_TOKENS = 40, 10


@dataclass(slots=True)
class Sent:
    """One request.

    Attributes:
        number: It stands in the prompt, so that the answer shows whose it is.
        way: One of `WAYS`.
        is_stream: Whether the answer is a stream.
        began_s: When it was sent, on the monotonic clock.
        port: The client's port.
        ended_s: When its answer was whole or broken; None before.
        fault: What was wrong with the answer; empty for a good one.
    """

    number: int
    way: str
    is_stream: bool
    began_s: float
    port: int = 0
    ended_s: float | None = None
    fault: str = ""

    def is_in_flight(self, at_s: float) -> bool:
        """Returns whether it had begun and not ended at this moment."""
        return self.began_s <= at_s and not self.has_ended(at_s)

    def has_ended(self, at_s: float) -> bool:
        """Returns whether it had ended at this moment."""
        return self.ended_s is not None and self.ended_s <= at_s


class Load:
    """Clients that ask again as soon as they are answered; a context manager.

    Args:
        url: The service.
        model: The model, of the family `words`.
        num_clients: How many clients each way has; every third of them is not for streams.
        key: The API key, or None.
    """

    def __init__(self, url: str, model: str, *, num_clients: int = 6, key: str | None = None):
        parts = urlsplit(url)
        self.requests: list[Sent] = []
        self._host, self._port = parts.hostname or "", parts.port or 80
        self._model = model
        self._num_clients = num_clients
        self._head = f"authorization: Bearer {key}\r\n" if key else ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    def __enter__(self) -> Self:
        """Starts the clients."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Lets the running requests end."""
        self._stop.set()
        self._thread.join()

    async def _run(self) -> None:
        await asyncio.gather(
            *(
                self._client(way, is_stream=number % 3 != 2)
                for way in WAYS
                for number in range(self._num_clients)
            )
        )

    async def _client(self, way: str, *, is_stream: bool) -> None:
        while not self._stop.is_set():
            sent = Sent(len(self.requests), way, is_stream, time.monotonic())
            self.requests.append(sent)
            try:
                async with asyncio.timeout(LIMIT_S):
                    fault = await self._ask(sent)
            except TimeoutError:
                fault = f"no answer in {LIMIT_S:g} s"
            except OSError as error:
                fault = type(error).__name__
            sent.fault, sent.ended_s = fault, time.monotonic()
            if fault:
                await asyncio.sleep(PAUSE_S)

    async def _ask(self, sent: Sent) -> str:
        reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            sent.port = writer.get_extra_info("sockname")[1]
            writer.write(self._bytes(sent))
            return find_fault(sent, await reader.read(-1))
        finally:
            writer.transport.abort()

    def _bytes(self, sent: Sent) -> bytes:
        content: dict[str, Any] = {
            "model": self._model,
            "prompt": f"{MARK}{sent.number} is answered",
            "max_tokens": STREAM_TOKENS if sent.is_stream else UNARY_TOKENS,
            "stream": sent.is_stream,
        }
        body = json.dumps(content)
        prefix = f"/models/{self._model}" if sent.way == "mounted" else ""
        way = f"{WAY_HEADER}: router\r\n" if sent.way == "router" else ""
        return (
            f"POST {prefix}{PATH} HTTP/1.1\r\nhost: chaos\r\nconnection: close\r\n{self._head}{way}"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n{body}"
        ).encode()


def find_fault(sent: Sent, answer: bytes) -> str:
    """Returns what is wrong with an answer, as its bytes came; empty for nothing."""
    head, _, body = answer.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 "):
        return "closed without an answer"
    status = int(head.split()[1])
    if status != 200:
        return f"status {status}"
    if sent.is_stream and b'"error"' in body:
        return "error at the end of a stream"
    length = next(
        (int(line[15:]) for line in head.lower().splitlines() if line[:15] == b"content-length:"),
        None,
    )
    whole = body.endswith(b"0\r\n\r\n") if length is None else len(body) == length
    if not whole or (sent.is_stream and b"data: [DONE]" not in body):
        return "cut"
    return "" if f"{MARK}{sent.number}".encode() in body else "the answer to another request"
