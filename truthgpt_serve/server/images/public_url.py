"""The address under which clients reach this application."""

from __future__ import annotations

import re

from truthgpt_serve.http.asgi import Scope

_HOST = re.compile(r"[A-Za-z0-9._:\[\]-]{1,255}")
_PREFIX = re.compile(r"(/[A-Za-z0-9._~%-]+)*/?")


def public_url(scope: Scope, path: str) -> str:
    """Returns the address of `path` as the client of a request sees it.

    The proxies in front say where they stand by `x-forwarded-proto`, `-host` and `-prefix`; of
    several values the first, the client's side, counts. Without them it is what the request itself
    says. A client that invents them misleads only itself: the address goes to no other client.

    Args:
        scope: The request.
        path: An absolute path of this application.
    """
    headers: dict[bytes, str] = {}
    for name, value in scope["headers"]:
        if name == b"host" or name.startswith(b"x-forwarded-"):
            first = value.partition(b",")[0].decode("latin-1").strip()
            headers.setdefault(name, first)
    scheme = headers.get(b"x-forwarded-proto", "").lower()
    if scheme not in ("http", "https"):
        scheme = scope.get("scheme") or "http"
    prefix = headers.get(b"x-forwarded-prefix")
    if prefix is None or not _PREFIX.fullmatch(prefix):
        prefix = scope.get("root_path", "")
    return f"{scheme}://{_host(scope, headers)}{prefix.rstrip('/')}{path}"


def _host(scope: Scope, headers: dict[bytes, str]) -> str:
    for name in (b"x-forwarded-host", b"host"):
        host = headers.get(name, "")
        if _HOST.fullmatch(host):
            return host
    address, port = scope.get("server") or ("127.0.0.1", None)
    return str(address) if port is None else f"{address}:{port}"
