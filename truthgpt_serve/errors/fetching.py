"""Says an HTTP client's error without the request, whose headers and URL may hold secrets."""

from __future__ import annotations

import logging
import re

_MAX_LENGTH = 200
_QUERY = re.compile(r"\?[^\s'\")>]*")


def describe_fetch(error: BaseException) -> str:
    """Returns an error of aiohttp or Requests in one line, for the log.

    `repr` of aiohttp's has all headers of the request, and its message shows after a colon what the
    server sent; texts of Requests and urllib3 have the URL.
    """
    text = str(error)
    if hasattr(error, "request_info"):
        text = str(getattr(error, "message", "")).partition(":")[0]
    line = _without_queries(next(iter(text.splitlines()), ""))[:_MAX_LENGTH]
    status = getattr(error, "status", None)
    kind = type(error).__name__ + (f" (status {status})" if isinstance(status, int) else "")
    return f"{kind}: {line}" if line else kind


def hide_queries(record: logging.LogRecord) -> bool:
    """Takes the queries of URLs out of a line: the filter of a library's logger."""
    record.msg, record.args = _without_queries(record.getMessage()), None
    return True


def _without_queries(text: str) -> str:
    return _QUERY.sub("?...", text)
