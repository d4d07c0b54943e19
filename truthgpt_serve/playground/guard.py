"""What browsers may ask of the playground: a few routes, bounded bodies, from its own page only.

Gradio has routes that fetch other addresses, edit code, or show how it is used. Only those that
the pages need are let through. A content security policy tells browsers to load nothing from
elsewhere, whatever a model's text names.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from truthgpt_serve.errors import (
    MethodError,
    OriginError,
    OverloadedError,
    RequestError,
    RouteNotFoundError,
    TooLargeError,
    TruthGPTError,
)
from truthgpt_serve.http.asgi import (
    Headers,
    Message,
    Receive,
    Scope,
    Send,
    WholeBody,
    header,
    relative_path,
    send_bytes,
    send_error,
)
from truthgpt_serve.http.sse import with_stream_headers
from truthgpt_serve.playground.bodies import file_paths, read_body, size_of
from truthgpt_serve.playground.uploads import Uploads

MAX_JSON_BYTES = 2 << 20
MAX_LETTERS = 500_000
"""Letters of one request, which may wait for its turn."""
VALUE_LETTERS = 16
"""As how many letters each of its values counts, for the memory that it takes."""
_ID = re.compile(r"[\w-]{1,64}")
_API = "/gradio_api/"
_UPLOAD = f"{_API}upload"
_READ = re.compile(
    r"/|/(static|assets)/[\w./@-]+|/theme\.css|/config"
    r"|/gradio_api/(queue/data|upload_progress|startup-events|app_id|heartbeat/\w+|file=/.+)"
)
_WRITTEN = re.compile(r"/gradio_api/(queue/join|run/predict|upload|cancel|reset)/?")
_HASHED = re.compile(r"/assets/.+-[\w-]{8}\.\w+")
"""Files whose name changes with their content."""
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "media-src 'self' data: blob:; connect-src 'self' data: blob:; worker-src 'self' blob:; "
    "object-src 'none'; form-action 'self'; frame-ancestors 'self'; base-uri 'self'"
)
_ADDED: Headers = [
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=(self)"),
]
_META = re.compile(r'<meta\s+(property="og:|name="twitter:)[^>]*>')
_MANIFEST = re.compile(r'<link rel="manifest"[^>]*>')


class Guard:
    """Stands in front of the application that Gradio makes.

    Args:
        app: The application, which has Gradio below `mount`.
        mount: Where the pages are.
        uploads: The uploads: a request may name no other file, and no address.
        num_inputs: How many values each of the page's handlers takes. Gradio prints them all where
            the number is wrong, and one of them is the API key.
        is_full: Whether a page has so much unread that it may send nothing.
        head: HTML for the head of the page.
    """

    def __init__(
        self,
        app: Any,
        mount: str,
        uploads: Uploads,
        num_inputs: Mapping[int, int],
        is_full: Callable[[str], bool],
        *,
        head: str = "",
    ) -> None:
        self._num_inputs = num_inputs
        self._is_full = is_full
        self._head = head
        self._app = app
        self._mount = mount
        self._uploads = uploads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request, or runs the lifespan of the application."""
        if scope["type"] == "lifespan":
            watching = asyncio.ensure_future(self._uploads.watch())
            try:
                await self._app(scope, receive, send)
            finally:
                watching.cancel()
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1000})
            return
        if scope["path"] == scope.get("root_path"):
            await _send_on(scope, send)
            return
        path = relative_path(scope)
        inner = {**scope, "root_path": "", "path": f"{self._mount}{path}"}
        inner["raw_path"] = inner["path"].encode()
        sent = _edited(send, path)
        try:
            self._check(scope, path)
            if path.startswith(_UPLOAD):
                if scope["method"] == "POST":
                    await self._uploads.receive(scope, receive, sent)
                else:
                    await self._uploads.tell(scope, sent)
                return
            receive = await self._bounded(scope, path, receive)
        except TruthGPTError as error:
            await send_error(send, error)
            return
        if path == "/":
            await self._send_page(inner, receive, send)
        else:
            await self._app(inner, receive, sent)

    # -- what comes in

    def _check(self, scope: Scope, path: str) -> None:
        method = scope["method"]
        if _READ.fullmatch(path) and ".." not in path:
            if method not in ("GET", "HEAD"):
                raise MethodError(
                    f"{path[:200]} takes GET, not {method[:40]}", allow=("GET", "HEAD")
                )
        elif _WRITTEN.fullmatch(path):
            if method != "POST":
                raise MethodError(f"{path} takes POST, not {method[:40]}", allow=("POST",))
            _check_origin(scope)
        else:
            raise RouteNotFoundError(f"the playground has no {path[:200]}")

    async def _bounded(self, scope: Scope, path: str, receive: Receive) -> Receive:
        """Returns `receive` for a body that is not too large.

        Raises:
            TooLargeError: It is.
            RequestError: It is JSON that cannot be read, or names a file that was not uploaded.
        """
        if scope["method"] != "POST":
            return receive
        length = header(scope["headers"], b"content-length") or b"0"
        if not length.isdigit() or int(length) > MAX_JSON_BYTES:
            raise TooLargeError(f"the request has more than {MAX_JSON_BYTES} bytes")
        body = await read_body(receive, MAX_JSON_BYTES)
        self._check_values(body, path)
        return WholeBody(body, receive)

    def _check_values(self, body: bytes, path: str) -> None:
        try:
            value = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise RequestError("the request is not JSON") from error
        if not isinstance(value, dict):
            raise RequestError("the request is not a JSON object")
        if size_of(value, VALUE_LETTERS) > MAX_LETTERS:
            raise TooLargeError(f"the request has more than {MAX_LETTERS} letters")
        _check_ids(value)
        if path.startswith((f"{_API}queue/join", f"{_API}run/")):
            number, data = value.get("fn_index"), value.get("data")
            expected = self._num_inputs.get(number) if type(number) is int else None
            if expected is None or not isinstance(data, list) or len(data) != expected:
                raise RequestError("the request names no handler of this page: load it again")
            if self._is_full(value.get("session_hash") or ""):
                raise OverloadedError("the page has not read what it asked for: load it again")
        for file in file_paths(value):
            if not self._uploads.has(file):
                raise RequestError("the request names a file that was not uploaded")

    # -- what goes out

    async def _send_page(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends Gradio's page without what names other hosts."""
        headers = [line for line in scope["headers"] if line[0] != b"accept-encoding"]
        start: Message = {}
        pieces: list[bytes] = []

        async def collect(message: Message) -> None:
            if message["type"] == "http.response.start":
                start.update(message)
            else:
                pieces.append(message.get("body", b""))

        await self._app({**scope, "headers": headers}, receive, collect)
        text = _META.sub("", b"".join(pieces).decode())
        body = _MANIFEST.sub(lambda _: self._head, text).encode()
        if scope["method"] == "HEAD":
            body = b""
        await send_bytes(
            send,
            body,
            b"text/html; charset=utf-8",
            status=start.get("status", 500),
            headers=[*_ADDED, (b"cache-control", b"no-store")],
        )


async def _send_on(scope: Scope, send: Send) -> None:
    """Leads to the page's folder, below which its files are."""
    location = scope["path"].rpartition("/")[2].encode() + b"/"
    query = scope.get("query_string") or b""
    headers = [(b"location", location + (b"?" + query if query else b""))]
    await send_bytes(send, b"", b"text/plain", status=307, headers=headers)


def _check_ids(value: dict[str, Any]) -> None:
    """Refuses what Gradio would keep as the name of a page or of its request."""
    for name in ("session_hash", "event_id"):
        given = value.get(name)
        if given is not None and not (isinstance(given, str) and _ID.fullmatch(given)):
            raise RequestError(f"`{name}` is not of this page: load it again")


def _check_origin(scope: Scope) -> None:
    """Refuses what a page of another site sends. Raises OriginError."""
    origin = header(scope["headers"], b"origin")
    if origin is None:
        return
    hosts = {header(scope["headers"], b"host"), header(scope["headers"], b"x-forwarded-host")}
    if urlsplit(origin.decode("latin-1")).netloc.encode("latin-1") not in hosts:
        raise OriginError("the playground is used by its own page only")


def _edited(send: Send, path: str) -> Send:
    """Returns `send` that completes an answer's headers and grants other sites nothing."""

    async def edited(message: Message) -> None:
        if message["type"] == "http.response.start":
            lines = [
                line
                for line in message.get("headers", [])
                if not line[0].startswith(b"access-control-") and line[0] != b"set-cookie"
            ]
            if _HASHED.fullmatch(path) and message["status"] == 200:
                lines = [line for line in lines if line[0] != b"cache-control"]
                lines.append((b"cache-control", b"public, max-age=31536000, immutable"))
            message = {**message, "headers": [*with_stream_headers(lines), *_ADDED]}
        await send(message)

    return edited
