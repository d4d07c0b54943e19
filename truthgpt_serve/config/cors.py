"""The `cors` section: the origins whose pages may use the service from a browser."""

from __future__ import annotations

import re
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from truthgpt_serve.config.base import Refusal, Section, refuse, show_value
from truthgpt_serve.config.variables import Expanded

ANY_ORIGIN = "*"
LOCAL_ORIGINS = (
    "http://localhost:*",
    "https://localhost:*",
    "http://127.0.0.1:*",
    "http://[::1]:*",
)
"""Pages that come from the browser's own machine, at any port."""
MAX_ORIGINS = 100
_ORIGIN = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<host>[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::(?P<port>\*|\d+))?"
)
_DEFAULT_PORTS = {"http": "80", "https": "443"}
_FORM = "write an origin such as https://chat.example.com or http://localhost:*"


def _fault(origin: str) -> tuple[str, str] | None:
    """Returns what is wrong with an origin that no browser sends so, and what to write instead."""
    if origin == ANY_ORIGIN:
        return None
    if origin == "null":
        message = "'null' is the origin of files and sandboxed frames, whoever wrote them"
        return message, "serve the page over HTTP, or write '*'"
    found = _ORIGIN.fullmatch(origin)
    if found is None:
        near = None if isinstance(origin, Expanded) else _nearest(origin)
        return f"{show_value(origin)} is not an origin", f"write {near}" if near else _FORM
    port = found["port"]
    if port is not None and port == _DEFAULT_PORTS.get(found["scheme"]):
        fix = f"write {found['scheme']}://{found['host']}"
        return f"{show_value(origin)} names the port that browsers leave out", fix
    if port not in (None, "*") and not (1 <= int(port) <= 65535 and port == str(int(port))):
        return f"{show_value(origin)} has no usable port", _FORM
    return None


def _nearest(text: str) -> str | None:
    """Returns the origin that a URL, or one in capitals, is in."""
    try:
        url = urlsplit(text if "://" in text else f"https://{text}")
        origin = f"{url.scheme}://{url.netloc}".lower()
    except ValueError:
        return None
    found = _ORIGIN.fullmatch(origin)
    return None if found is None or _fault(origin) is not None else origin


def _check_origin(origin: str) -> str:
    fault = _fault(origin)
    if fault is not None:
        raise refuse([Refusal("", *fault)])
    return origin


def _check_list(origins: list[str]) -> list[str]:
    if ANY_ORIGIN in origins and len(origins) > 1:
        message = "'*' is every origin, so the others have no effect"
        raise refuse([Refusal("", message, "write ['*'] or the origins")])
    return origins


Origin = Annotated[str, Field(max_length=256), AfterValidator(_check_origin)]


class CorsSection(Section):
    """Which web pages may use the service from a browser (CORS).

    Credentials of the browser, such as cookies, are never asked for: a page sends its key in
    `Authorization` itself.
    """

    allow_origins: Annotated[
        list[Origin], Field(max_length=MAX_ORIGINS), AfterValidator(_check_list)
    ] = Field(default_factory=lambda: list(LOCAL_ORIGINS))
    """Origins whose pages may read answers, such as `https://chat.example.com`; `:*` stands for any
    port. `['*']` lets every page that a user visits use the service with that user's network, `[]`
    none. By default pages of the browser's own machine."""
