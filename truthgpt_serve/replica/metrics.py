"""One page of metrics for all replicas of a model, each sample with the label `replica`.

A scrape reaches one replica, which asks the others for theirs. Format:
https://prometheus.io/docs/instrumenting/exposition_formats/, version 0.0.4.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

from truthgpt_serve.access.identity import identity_of
from truthgpt_serve.errors import TruthGPTError, UpstreamError
from truthgpt_serve.http.asgi import (
    Headers,
    Message,
    Receive,
    Scope,
    Send,
    relative_path,
    send_bytes,
)
from truthgpt_serve.http.probes import METHODS, METRICS, App
from truthgpt_serve.router.pool import ConnectionPool

logger = logging.getLogger(__name__)

OWN_QUERY = b"replica=own"
"""Asks for the metrics of the replica that answers alone, as its application gives them."""
FETCH_TIMEOUT_S = 3.0
NO_METRICS = (400, 404)
"""Answers of an application without metrics of its own: its replicas are counted all the same."""
OF_KEYS = "truthgpt_key_"
"""How the names of metrics begin that have the label `key`."""
CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
UP = "truthgpt_replica_up"
_UP_HEAD = f"# HELP {UP} Whether the replica answered this scrape.\n# TYPE {UP} gauge"
_SAMPLE = re.compile(r"([a-zA-Z_:][\w:]*)(?:\{(.*)\})?(\s+\S.*)", re.ASCII)
_HEAD = re.compile(r"# (?:HELP|TYPE) (\S+)")
_REDIRECTS = (307, 308)
_NEGOTIATED = (b"accept", b"accept-encoding")

Address = tuple[str, int]
FindOthers = Callable[[], Awaitable[dict[str, Address]]]


class ReplicaMetrics:
    """An ASGI application whose `/metrics` holds those of every replica of the model.

    Args:
        app: This replica's own.
        replica: The name of this replica, for the label.
        find_others: Returns host and port of the others by their names.
        pages: Give further metrics of this replica; called in a thread.
        internal_headers: Returns the headers with which it asks the others.
    """

    def __init__(
        self,
        app: Any,
        replica: str,
        find_others: FindOthers,
        pages: Sequence[Callable[[], str]] = (),
        internal_headers: Callable[[], Headers] = list,
    ) -> None:
        self._app = app
        self._replica = replica
        self._find_others = find_others
        self._pages = pages
        self._internal_headers = internal_headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one ASGI connection."""
        path: str = scope.get("path", "").rstrip("/")
        if scope["type"] != "http" or not path.endswith(METRICS):
            await self._app(scope, receive, send)
            return
        status, headers, body = await _collect(self._app, {**scope, "path": path}, receive)
        if status in _REDIRECTS:  # an application that is mounted there, as vLLM's exporter is
            mounted = {**scope, "path": f"{path}/"}
            status, headers, body = await _collect(self._app, mounted, receive)
        if status not in (200, *NO_METRICS):
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": body})
            return
        text = body.decode() if status == 200 else ""
        for page in self._pages:
            text = f"{text.rstrip()}\n{await asyncio.to_thread(page)}".lstrip()
        if scope.get("query_string", b"") != OWN_QUERY:
            text = merge({self._replica: text, **await self._others(path.encode())})
        identity = identity_of(scope)
        if identity is not None and not (identity.admin or identity.is_internal):
            text = without_other_keys(text, identity.name)
        await send_bytes(send, text.encode(), CONTENT_TYPE)

    async def _others(self, path: bytes) -> dict[str, str | None]:
        """Returns the pages of the other replicas by their names, None of one that fails."""
        try:
            async with asyncio.timeout(FETCH_TIMEOUT_S):
                others = await self._find_others()
        except (TimeoutError, RuntimeError) as error:
            logger.warning("the other replicas are unknown, and not in this scrape: %s", error)
            return {}
        headers = self._internal_headers()
        asked = (_fetch(address, path, headers) for address in others.values())
        pages = await asyncio.gather(*asked)
        return dict(zip(others, pages, strict=True))


def with_metrics(app: App, metrics: App) -> App:
    """Returns an application whose `/metrics` another one answers, for what comes by Ray's proxy.

    Where HAProxy serves, scrapes do not come that way.
    """

    def serve(scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        is_scrape = scope["type"] == "http" and scope["method"] in METHODS
        is_scrape = is_scrape and relative_path(scope).rstrip("/") == METRICS
        return (metrics if is_scrape else app)(scope, receive, send)

    return serve


def without_other_keys(text: str, name: str) -> str:
    """Returns a page without what other keys used, which is for those that may read it."""
    own = f'key="{name}"'
    lines = (
        line for line in text.split("\n") if not line.startswith(OF_KEYS) or own in _labels(line)
    )
    return "\n".join(lines)


def _labels(line: str) -> list[str]:
    found = _SAMPLE.fullmatch(line)
    return [] if found is None else (found[2] or "").split(",")


async def _fetch(address: Address, path: bytes, headers: Headers) -> str | None:
    pool = ConnectionPool(*address, connect_timeout_s=FETCH_TIMEOUT_S, peer="a replica")
    try:
        async with asyncio.timeout(FETCH_TIMEOUT_S):
            status, body = await pool.fetch(path + b"?" + OWN_QUERY, headers)
            if status != 200:
                raise UpstreamError(f"status {status}")
            return body.decode()
    except (TimeoutError, TruthGPTError, UnicodeDecodeError) as error:
        logger.warning("a replica at %s:%d is not in this scrape: %s", *address, error)
        return None
    finally:
        pool.close()


async def _collect(app: Any, scope: Scope, receive: Receive) -> tuple[int, Headers, bytes]:
    """Returns the application's own answer, in the one format that is merged here."""
    status, headers, body = 500, [], bytearray()

    async def take(message: Message) -> None:
        nonlocal status, headers
        if message["type"] == "http.response.start":
            status, headers = message["status"], list(message.get("headers", ()))
        elif message["type"] == "http.response.body":
            body.extend(message.get("body", b""))

    plain = [header for header in scope["headers"] if header[0] not in _NEGOTIATED]
    await app({**scope, "method": "GET", "headers": plain}, receive, take)
    return status, headers, bytes(body)


def label(text: str, replica: str) -> str:
    """Returns a page whose samples all have the label `replica`."""
    value = replica.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    return "".join(f"{_label_line(line, value)}\n" for line in text.splitlines())


def _label_line(line: str, value: str) -> str:
    sample = None if line.startswith("#") else _SAMPLE.fullmatch(line)
    if sample is None:
        return line
    name, labels, rest = sample.groups()
    others = f"{labels.rstrip(',')}," if labels else ""
    return f'{name}{{{others}replica="{value}"}}{rest}'


def merge(pages: dict[str, str | None]) -> str:
    """Returns one page of several: each metric stands once, its samples with the label `replica`.

    Line by line, not with prometheus_client's parser: that one reads an engine's page six times as
    slowly, on the event loop that serves requests, and refuses a whole page for one bad line.

    Args:
        pages: By the name of the replica; None where it did not answer.
    """
    heads: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for replica, page in pages.items():
        for name, line in _lines(label(page or "", replica).splitlines()):
            if line.startswith("#"):
                known = heads.setdefault(name, [])
                if line.split()[:2] not in (head.split()[:2] for head in known):
                    known.append(line)
            else:
                samples.setdefault(name, []).append(line)
    up = [label(f"{UP} {int(page is not None)}", name)[:-1] for name, page in pages.items()]
    lines = [_UP_HEAD, *up]
    for name in dict.fromkeys((*heads, *samples)):
        lines += [*heads.get(name, ()), *samples.get(name, ())]
    return "".join(f"{line}\n" for line in lines)


def _lines(lines: Iterable[str]) -> Iterable[tuple[str, str]]:
    """Yields each line that counts with the metric that it belongs to."""
    current = ""
    for line in lines:
        head = _HEAD.match(line)
        if head is not None:
            current = head[1]
        elif line.startswith("#") or not line.strip():
            continue
        yield current, line
