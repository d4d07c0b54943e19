"""Closes in HAProxy's configuration what Ray opens beside the service's own port.

Works on the text that Ray Serve writes.
"""

from __future__ import annotations

import re

_EXTRA_SECTIONS = ("frontend prometheus", "listen stats")
"""Metrics and statistics: Ray listens with them on every address, and reads neither."""
_DEFAULT_LOG = re.compile(r"^\s*log 127\.0\.0\.1:514 ")
"""Ray's own choice: a datagram for each request, from a port on every address; nothing reads it."""
_LOG_FORMAT = "option httplog"
_METRICS = " format rfc5424 "
"""In the line by which Ray counts requests: `RAY_SERVE_HAPROXY_METRICS_ENABLED`."""
_SOCKET = re.compile(r"^(\s*stats socket \S+) mode 666 level admin\b")


def close_access(lines: list[str]) -> None:
    """Takes the extra ports away, and leaves the admin socket to the user alone.

    Ray asks at the socket for states and statistics, and for the listeners when it replaces the
    process: an operator may do all of it.
    """
    for section in _EXTRA_SECTIONS:
        if section in lines:
            _remove_section(lines, lines.index(section))
    if any(_DEFAULT_LOG.match(line) for line in lines):
        kept = [line for line in lines if not _DEFAULT_LOG.match(line)]
        if not any(_METRICS in line for line in kept):  # without that format they would be empty
            kept = [line for line in kept if line.strip() != _LOG_FORMAT]
        lines[:] = kept
    lines[:] = [_SOCKET.sub(r"\1 mode 600 level operator", line) for line in lines]


def _remove_section(lines: list[str], start: int) -> None:
    end = start + 1
    while end < len(lines) and (not lines[end].strip() or lines[end].startswith((" ", "\t"))):
        end += 1
    del lines[start:end]
