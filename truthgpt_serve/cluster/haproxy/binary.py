"""A copy of HAProxy whose built-in pages are in OpenAI's envelope.

HAProxy answers what it cannot read as a request, and a head that does not arrive in time, before
any rule or `errorfile` of its configuration counts: with pages that are built into the program, in
HTML. This writes a copy of the program in which the text of those pages is replaced, in the same
number of bytes. It fits HAProxy 2.8; where the program differs, no copy is made.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

COPY_NAME = "program/haproxy"

_MESSAGES = {
    400: ("Bad Request", "malformed request", None),
    405: ("Method Not Allowed", "there is no such method", "method_not_allowed"),
    408: ("Request Timeout", "the request did not arrive in time", "request_timeout"),
    413: ("Content Too Large", "the request is too large", None),
    422: ("Unprocessable Content", "the request cannot be read", None),
    500: ("Internal Server Error", "the proxy failed", None),
    501: ("Not Implemented", "the proxy does not implement this", None),
}
"""Reason, message and code of the pages that HAProxy may send before it has a request."""


class UnknownProgramError(ValueError):
    """The program holds its pages otherwise than this module knows it."""


def copy_with_pages(binary: Path, folder: Path) -> Path:
    """Returns a copy of the program in a folder, which is written where it is not there yet.

    Raises:
        UnknownProgramError: A page is not there, or there twice, or too short.
        OSError: The copy cannot be written.
    """
    program = replace_pages(binary.read_bytes())
    copy = folder / COPY_NAME
    copy.parent.mkdir(mode=0o700, exist_ok=True)
    libraries, link = binary.resolve().parent / "lib", copy.parent / "lib"
    if libraries.is_dir() and not link.is_symlink():  # the program looks for them beside itself
        link.symlink_to(libraries)
    if not copy.exists() or copy.read_bytes() != program:
        draft = copy.with_suffix(f".{os.getpid()}")
        draft.write_bytes(program)
        draft.chmod(0o700)
        draft.replace(copy)
    return copy


def replace_pages(program: bytes) -> bytes:
    """Returns the program with other pages. Raises UnknownProgramError."""
    for status in _MESSAGES:
        found = re.findall(rb"HTTP/1\.1 %d [^\0]*</html>\n(?=\0)" % status, program)
        if len(found) != 1:
            raise UnknownProgramError(
                f"HAProxy has {len(found)} built-in pages of status {status}, not one"
            )
        program = program.replace(found[0], _page(status, len(found[0])))
    return program


def _page(status: int, num_bytes: int) -> bytes:
    reason, message, code = _MESSAGES[status]
    kind = "server_error" if status >= 500 else "invalid_request_error"
    error = {"message": message, "type": kind, "param": None, "code": code}
    body = json.dumps({"error": error}, separators=(",", ":"))
    head = (
        f"HTTP/1.1 {status} {reason}\r\nContent-Type: application/json\r\n"
        "Connection: close\r\nContent-Length: {:03d}\r\n\r\n"
    )
    room = num_bytes - len(head.format(0))
    if len(body) > room:
        raise UnknownProgramError(f"the built-in page of status {status} is too short")
    return (head.format(room) + body.ljust(room)).encode()
