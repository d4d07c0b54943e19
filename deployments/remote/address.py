"""The remote server's base URL, and which of its addresses a client's path means; sends nothing."""

from __future__ import annotations

from urllib.parse import urlsplit

API_PREFIX = "/v1"
"""Under which clients find OpenAI's routes here, whatever the remote server calls its own."""

_ROUTES = ("/chat/completions", "/completions", "/embeddings", "/models", "/responses")
_EXAMPLE = "write it as a client library takes it, such as https://host/v1"
_KEY_FIX = "take it out; the name of an environment variable belongs to serving.engine.api_key_env"

Fault = tuple[str, str]


def find_url_fault(url: str | None) -> Fault | None:
    """Returns what is wrong with a base URL and what to write instead, or None.

    The message never repeats a part of the URL that may be a secret.
    """
    if url is None:
        return "is required by family 'remote': the base URL of the other server", _EXAMPLE
    try:
        parts = urlsplit(url)
        secret = "@" in parts.netloc
        port_is_wrong = not secret and parts.port == 0
    except ValueError as error:
        return f"is not a URL: {error}", _EXAMPLE
    if secret:
        return "holds a user name or a password", _KEY_FIX
    if parts.query or parts.fragment or url.endswith(("?", "#")):
        return "has a query or a fragment: routes are appended to a base URL", _KEY_FIX
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return f"must be an http or https URL, not {url[:60]!r}", _EXAMPLE
    if port_is_wrong or not url.isascii() or any(not "!" <= letter <= "~" for letter in url):
        return f"is not a URL that can be asked: {url[:60]!r}", _EXAMPLE
    return _find_path_fault(parts.path)


def _find_path_fault(path: str) -> Fault | None:
    if has_dot_segments(path):
        return f"has a `.` or `..` in its path {path!r}", "write the path out"
    for route in _ROUTES:
        if path.rstrip("/").endswith(route):
            rest = path.rstrip("/").removesuffix(route) or "/"
            return f"ends with the route {route}, which requests bring", f"end it with {rest}"
    return None


def has_dot_segments(path: str) -> bool:
    """Whether a decoded path could leave the place that it is appended to."""
    return any(part in (".", "..") for part in path.replace("\\", "/").split("/"))


class Addresses:
    """Where the remote server has what clients ask for by path.

    `/v1/...` is below the base URL. What else there is, such as `/tokenize`, is beside it: below
    the base URL without its `/v1`.

    Args:
        base_url: A base URL without a fault.

    Attributes:
        origin: Scheme, host and port, for the log.
        is_encrypted: Whether requests travel over TLS.
        is_local: Whether the server is on this machine.
    """

    def __init__(self, base_url: str) -> None:
        self._base = base_url.rstrip("/")
        self._root = self._base.removesuffix(API_PREFIX)
        parts = urlsplit(self._base)
        self.origin = f"{parts.scheme}://{parts.netloc}"
        self.is_encrypted = parts.scheme == "https"
        host = parts.hostname or ""
        self.is_local = host in ("localhost", "::1") or host.startswith("127.")

    @property
    def base(self) -> str:
        """The base URL without a slash at its end."""
        return self._base

    def of(self, path: str, query: str = "") -> str:
        """Returns the URL of a percent-encoded path as clients of this service see it."""
        if path == API_PREFIX or path.startswith(f"{API_PREFIX}/"):
            url = self._base + path.removeprefix(API_PREFIX)
        else:
            url = self._root + path
        return f"{url}?{query}" if query else url
