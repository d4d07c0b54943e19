"""Has the service's lines come in Ray Serve's log as what they are, each one that can be written.

Ray Serve has only its own logger write to the log. What others log, Python prints where they say a
warning or more, and Ray takes that as a line of no importance.

In a replica, all that is logged or printed becomes lines of Ray Serve's own logger, whose file is
UTF-8. A line with half a surrogate pair cannot be written there; what Python then says of it, with
the line in its traceback, becomes lines again, and so on: the replica answers nobody any more.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

LOGGER = "ray.serve"
OWN_LOGGERS = ("truthgpt_serve", "deployments")
MAX_LINE_CHARS = 64 * 1024
"""Longest line: a message may hold a whole request."""
_formatter = logging.Formatter()


class _Forward(logging.Handler):
    """Gives lines to Ray Serve's logger, with their level and whatever handlers that has now.

    Args:
        target: The logger.
    """

    def __init__(self, target: logging.Logger) -> None:
        super().__init__()
        self._target = target

    def emit(self, record: logging.LogRecord) -> None:
        if self._target.isEnabledFor(record.levelno):
            self._target.handle(record)


def mend_lines(
    logger: logging.Logger | None = None, own_loggers: Iterable[str] = OWN_LOGGERS
) -> None:
    """Has a logger's lines made writable, and those of other loggers come there.

    Args:
        logger: Ray Serve's logger.
        own_loggers: Names of the others, with those below them.
    """
    logger = logger or logging.getLogger(LOGGER)
    if make_writable in logger.filters:
        return
    logger.addFilter(make_writable)
    for name in own_loggers:
        own = logging.getLogger(name)
        own.addHandler(_Forward(logger))
        own.setLevel(logging.INFO)
        own.propagate = False  # else a handler of a user's class would write them again


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
