"""Makes each line of Ray Serve's log one that can be written.

In a replica, all that is logged or printed becomes lines of Ray Serve's own logger, whose file is
UTF-8. A line with half a surrogate pair cannot be written there; what Python then says of it, with
the line in its traceback, becomes lines again, and so on: the replica answers nobody any more.
"""

from __future__ import annotations

import logging

LOGGER = "ray.serve"
MAX_LINE_CHARS = 64 * 1024
"""Longest line: a message may hold a whole request."""
_formatter = logging.Formatter()


def mend_lines(logger: logging.Logger | None = None) -> None:
    """Has a logger's own lines made writable, whatever handlers it will have.

    Args:
        logger: Ray Serve's logger.
    """
    logger = logger or logging.getLogger(LOGGER)
    if make_writable not in logger.filters:
        logger.addFilter(make_writable)


def make_writable(record: logging.LogRecord) -> bool:
    """A filter that passes every record; what has no UTF-8 is escaped, and long ones are cut."""
    try:
        message = record.getMessage()
    except Exception:  # wrong arguments: the handler says so
        return True
    if (writable := _writable(message)) != message:
        record.msg, record.args = writable, None
    if record.exc_info and not record.exc_text:
        record.exc_text = _writable(_formatter.formatException(record.exc_info))
    return True


def _writable(text: str) -> str:
    if len(text) > MAX_LINE_CHARS:
        text = f"{text[:MAX_LINE_CHARS]}… ({len(text)} characters)"
    if text.isascii():
        return text
    return text.encode("utf-8", "backslashreplace").decode()
