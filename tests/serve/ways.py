"""Sends one request down each way to a model, and reads all of the answer that clients go by."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from truthgpt_serve.cluster.haproxy.direct import WAY_HEADER
from truthgpt_serve.http.sse import read_data

TIMEOUT_S = 180.0
COMPARED = (
    "content-type",
    "retry-after",
    "allow",
    "accept-encoding",
    "cache-control",
    "x-accel-buffering",
    "x-request-id",
    "access-control-allow-origin",
    "access-control-allow-methods",
    "access-control-expose-headers",
    "vary",
    "server",
    "x-kept",
    "keep-alive",
)
"""Headers of answers that mean the same on every way."""
REQUEST_ID = "same-answers-1"


@dataclass(frozen=True)
class Way:
    """One way to a model.

    Attributes:
        name: For the test's output.
        prefix: Stands in front of the path; `{model}` is the model's name.
        headers: Further headers of the request.
    """

    name: str
    prefix: str
    headers: Mapping[str, str] = field(default_factory=dict)


ROUTER = Way("router", "", {WAY_HEADER: "router"})
MODEL = Way("model", "/models/{model}")
DIRECT = Way("direct", "")
WAYS = (ROUTER, MODEL, DIRECT)
"""All ways; each is compared with the first. One more way is one more entry."""


@dataclass(frozen=True)
class Request:
    """A request, without its way.

    Attributes:
        model: The model that it is for.
        body: JSON, or bytes as they are.
        method: The method.
        path: The path at the service's address.
        headers: Names and values, in this order and as often as they stand here.
        length: What `content-length` says, where the body is shorter; the rest never comes.
        chunked: Whether the body is sent in chunks, without a length.
    """

    model: str
    body: Any = b""
    method: str = "POST"
    path: str = "/v1/completions"
    headers: tuple[tuple[str, str], ...] = ()
    length: int | None = None
    chunked: bool = False

    @property
    def data(self) -> bytes:
        """The body's bytes."""
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


@dataclass(frozen=True)
class Answer:
    """What a client sees of an answer.

    Attributes:
        status: The status.
        headers: Those of `COMPARED`, each with all its values.
        num_dates: How many `date` headers there are.
        body: Its JSON or, of a stream, the events' data; text where it is neither.
        whole: Whether it came to its end.
        seconds: How long it took.
    """

    status: int
    headers: dict[str, list[str]]
    num_dates: int
    body: Any
    whole: bool
    seconds: float = field(compare=False, default=0.0)

    @property
    def error(self) -> dict[str, Any]:
        """The error of the body, or of the last event."""
        body = self.body[-1] if isinstance(self.body, list) and self.body else self.body
        found = body.get("error") if isinstance(body, dict) else None
        return found if isinstance(found, dict) else {}


def send(url: str, way: Way, request: Request) -> Answer:
    """Sends a request down one way."""
    began = time.monotonic()
    parts = urlsplit(url)
    path = way.prefix.format(model=request.model) + request.path
    lines = [f"{request.method} {path} HTTP/1.1", f"host: {parts.netloc}"]
    given = {name for name, _ in request.headers}
    if "content-type" not in given and request.data:
        lines.append("content-type: application/json")
    if "x-request-id" not in given:
        lines.append(f"x-request-id: {REQUEST_ID}")
    lines += [f"{name}: {value}" for name, value in (*request.headers, *way.headers.items())]
    data = request.data
    if request.chunked:
        lines.append("transfer-encoding: chunked")
        data = b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data)
    else:
        lines.append(f"content-length: {request.length or len(data)}")
    head = "\r\n".join([*lines, "", ""]).encode("latin-1")
    with socket.create_connection((parts.hostname, parts.port), timeout=TIMEOUT_S) as client:
        with contextlib.suppress(OSError):  # refused by its head: the answer is there already
            client.sendall(head + data)
        return _read(client, request.method, began)


def _read(client: socket.socket, method: str, began: float) -> Answer:
    answer = http.client.HTTPResponse(client, method=method)
    answer.begin()
    whole = True
    body = b""
    try:
        while piece := answer.read1(65536):
            body += piece
        whole = not answer.length
    except (http.client.IncompleteRead, ConnectionError):
        whole = False
    headers = {name: answer.msg.get_all(name) or [] for name in COMPARED}
    kind = answer.msg.get("content-type", "")
    return Answer(
        answer.status,
        {name: values for name, values in headers.items() if values},
        len(answer.msg.get_all("date") or []),
        _decoded(kind, body),
        whole,
        time.monotonic() - began,
    )


def _decoded(kind: str, body: bytes) -> Any:
    if kind.startswith("text/event-stream"):
        return [_json(event) for event in read_data(body)]
    return _json(body)


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return data.decode(errors="replace")


_ID = re.compile(r"[0-9a-f]{32}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_TIME = re.compile(r'("(?:created|created_at)": )\d+')


def without(answer: Answer, forget: Callable[[Any], Any] | None = None) -> dict[str, Any]:
    """Returns what is compared: without ids and times that are new in each answer.

    Args:
        answer: The answer.
        forget: Takes the answer's fields and returns those to compare.
    """
    text = json.dumps([answer.status, answer.headers, answer.num_dates, answer.body, answer.whole])
    status, headers, num_dates, body, whole = json.loads(_TIME.sub(r"\g<1>0", _ID.sub("id", text)))
    found = {
        "status": status,
        "headers": headers,
        "num_dates": num_dates,
        "body": body,
        "whole": whole,
    }
    return forget(found) if forget is not None else found
