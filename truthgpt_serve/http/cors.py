"""Cross-origin requests of browsers: answers preflights, and says which pages may read an answer.

The protocol: https://fetch.spec.whatwg.org/#http-cors-protocol. Credentials are never allowed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from truthgpt_serve.errors import OriginError
from truthgpt_serve.http.asgi import (
    Headers,
    Message,
    Receive,
    Scope,
    Send,
    header,
    relative_path,
    send_error,
)
from truthgpt_serve.http.headers import lower_case

ANY = "*"
METHODS = b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
EXPOSED = b"x-request-id, retry-after, location, inference-header-content-length"
"""Headers of answers that pages may read, beside those that they may read anyway."""
MAX_AGE_S = 600
"""How long a browser remembers a preflight's answer."""
_PREFIX = b"access-control-"
_METHOD, _HEADERS = b"access-control-request-method", b"access-control-request-headers"
_NAMES = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+(?:[ \t]*,[ \t]*[!#$%&'*+.^_`|~0-9A-Za-z-]+)*")


class Origins:
    """The origins whose pages may read answers.

    Args:
        allowed: As browsers write them; `*` is all, and `:*` at the end any port.
    """

    def __init__(self, allowed: Iterable[str]) -> None:
        names = [name.encode() for name in allowed]
        self.any = ANY.encode() in names
        self._any_port = {name[:-2] for name in names if name.endswith(b":*")}
        self._exact = self._any_port.union(name for name in names if name[-2:] != b":*")

    def __contains__(self, origin: bytes) -> bool:
        if self.any or origin in self._exact:
            return True
        rest, _, port = origin.rpartition(b":")
        return port.isdigit() and rest in self._any_port


def is_preflight(scope: Scope) -> bool:
    """Returns whether a browser only asks whether it may send a request."""
    if scope["type"] != "http" or scope["method"] != "OPTIONS":
        return False
    return (
        header(scope["headers"], b"origin") is not None
        and header(scope["headers"], _METHOD) is not None
    )


class Cors:
    """An ASGI application that pages of some other origins may use.

    What the application itself says about other origins is left out: the one list counts.

    Args:
        app: The application.
        allow_origins: Those origins; see `Origins`.
    """

    def __init__(self, app: Any, allow_origins: Iterable[str]) -> None:
        self._app = app
        self._origins = Origins(allow_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        origin = header(scope["headers"], b"origin")
        if is_preflight(scope):
            await self._answer_preflight(scope, origin or b"", send)
        elif origin is None and (self._origins.any or scope["method"] not in ("GET", "HEAD")):
            await self._app(scope, receive, send)  # caches keep no such answer for another origin
        else:
            await self._app(scope, receive, self._marked(origin, send))

    def _marked(self, origin: bytes | None, send: Send) -> Send:
        async def send_marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": self._mark(lower_case(message), origin)}
            await send(message)

        return send_marked

    def _mark(self, headers: Headers, origin: bytes | None) -> Headers:
        kept = [line for line in headers if not line[0].startswith(_PREFIX)]
        if origin is not None and origin in self._origins:
            kept += self._allowance(origin)
            kept.append((b"access-control-expose-headers", EXPOSED))
        return kept if self._origins.any else _vary(kept)

    def _allowance(self, origin: bytes) -> Headers:
        value = ANY.encode() if self._origins.any else origin
        return [(b"access-control-allow-origin", value)]

    async def _answer_preflight(self, scope: Scope, origin: bytes, send: Send) -> None:
        vary = (b"vary", b"origin, %b, %b" % (_METHOD, _HEADERS))
        if origin not in self._origins:
            shown = origin[:200].decode("latin-1")
            error = OriginError(
                f"pages of the origin {shown!r} may not use this service: its operator can add it "
                "to `cors.allow_origins`"
            )
            await send_error(send, error, headers=[vary], path=relative_path(scope))
            return
        headers = [
            *self._allowance(origin),
            (b"access-control-allow-methods", METHODS),
            (b"access-control-max-age", b"%d" % MAX_AGE_S),
            vary,
        ]
        asked = (header(scope["headers"], _HEADERS) or b"").strip()
        if _NAMES.fullmatch(asked):
            headers.append((b"access-control-allow-headers", asked))
        await send({"type": "http.response.start", "status": 204, "headers": headers})
        await send({"type": "http.response.body", "body": b""})


def _vary(headers: Headers) -> Headers:
    """Adds `origin` to what an answer depends on."""
    values = [value for name, value in headers if name == b"vary"]
    words = {word.strip().lower() for value in values for word in value.split(b",")}
    if words & {b"*", b"origin"}:
        return headers
    others = [line for line in headers if line[0] != b"vary"]
    return [*others, (b"vary", b", ".join([*values, b"origin"]))]
