"""Which headers cross to the remote server and back."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping

from truthgpt_serve.errors import ServerError
from truthgpt_serve.http.asgi import Headers
from truthgpt_serve.http.headers import HOP_BY_HOP, end_to_end
from truthgpt_serve.http.retriable import HEADER as UNREACHED

MARK = b"x-truthgpt-remote"
"""Names the applications of this family that a request has passed, so that none gets it twice."""
MAX_MARKS = 8
"""Most applications of this family that a request may pass one after the other."""

_ACCOUNT = frozenset((b"openai-organization", b"openai-project"))
CREDENTIALS = _ACCOUNT.union(b"authorization proxy-authorization cookie x-api-key api-key".split())
"""What a client says about itself to this service, and the remote server must not hear."""
WRITTEN_HERE = HOP_BY_HOP.union(
    (b"host", b"content-length", b"expect", b"accept-encoding", b"x-request-id", MARK)
)
"""Headers of the request that this hop or its HTTP client writes itself."""

_FORWARDED = (b"x-forwarded-", b"x-real-ip", b"forwarded")
_NOT_SENT_UP = WRITTEN_HERE | CREDENTIALS | {b"x-request-disconnect-disabled"}
# `date` and `server` are our own server's. A cookie or a rule for the remote host is not for ours,
# and a credential that comes back is the service's own.
# That a request reached nothing there does not say so of the model here.
_NOT_SENT_DOWN = HOP_BY_HOP.union(
    CREDENTIALS,
    b"date server x-request-id set-cookie alt-svc strict-transport-security".split(),
    (UNREACHED[0],),
)
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[\x20-\x7e\t]*")


class LoopError(ServerError):
    """A request came back to the application that had relayed it."""

    status = 508
    default_code = "loop_detected"


def find_header_fault(name: str, value: str) -> str | None:
    """Returns why a header of the configuration cannot be sent, or None; never shows its value."""
    if not _NAME.fullmatch(name):
        return "is not the name of a header"
    low = name.lower().encode()
    if low in CREDENTIALS - _ACCOUNT:
        return "carries a credential, which belongs into an environment variable"
    if low in WRITTEN_HERE:
        return "is written by the relay itself"
    if not _VALUE.fullmatch(value):
        return "has a value that no header can have"
    return None


class RequestHeaders:
    """Makes the headers of requests to one remote server.

    Args:
        static: Headers of the configuration.
        key: Name and value of the header with the remote server's key, or None.
        identity: What this application is in a loop: its name and where it sends requests.
    """

    def __init__(
        self, static: Mapping[str, str], key: tuple[str, str] | None, identity: Iterable[str]
    ) -> None:
        self._static = [*static.items(), *([key] if key is not None else [])]
        self._replaced = _NOT_SENT_UP | {name.lower().encode() for name, _ in self._static}
        self._mark = hashlib.sha256("\n".join(identity).encode()).hexdigest()[:16]

    def build(self, given: Headers, request_id: str) -> list[tuple[str, str]]:
        """Returns the headers, without those that the HTTP client writes.

        Args:
            given: The client's, names in lower case.
            request_id: Sent as `x-request-id`.

        Raises:
            LoopError: The request has been here before, or has passed too many of our kind.
        """
        lines = [
            (name.decode("latin-1"), value.decode(errors="replace"))
            for name, value in end_to_end(given, self._replaced)
            if not name.startswith(_FORWARDED)
        ]
        return [
            *lines,
            *self._static,
            ("accept-encoding", "identity"),
            ("x-request-id", request_id),
            (MARK.decode(), self._marks(given)),
        ]

    def _marks(self, given: Headers) -> str:
        marks = [
            mark.strip()
            for name, value in given
            if name == MARK
            for mark in value.decode("latin-1").split(",")
        ]
        if self._mark in marks:
            raise LoopError(
                "the request came back to the application that had relayed it: "
                "`model.name_or_path` leads to this very service; name another server there, or "
                "another model of this service by `serving.engine.model`"
            )
        if len(marks) >= MAX_MARKS:
            raise LoopError(f"the request was relayed {len(marks)} times, the most that is allowed")
        return ",".join([*marks, self._mark])


def headers_down(given: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Returns the headers of the remote's answer that the client gets, names in lower case."""
    return end_to_end([(name.lower(), value) for name, value in given], _NOT_SENT_DOWN)
