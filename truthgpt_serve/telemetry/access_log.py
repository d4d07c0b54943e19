"""Lines of the access log, written by Ray Serve's own logger as its `logging_config` says.

They take the place of Ray's, which know no key, tokens or path: `enable_access_log` switches both,
and `encoding: JSON` shows the fields.
"""

from __future__ import annotations

import logging
from typing import Any

from truthgpt_serve.cluster.ray_servers import ACCESS_FIELD
from truthgpt_serve.telemetry.record import RequestRecord

LOGGER = "ray.serve"
_OURS = "outcome"
"""A field that only records of ours have."""


class AccessLog:
    """Writes a line for each request, if Ray Serve's configuration wants that.

    Args:
        logger: Ray Serve's logger.
    """

    def __init__(self, logger: logging.Logger | None = None) -> None:
        self._logger = logger or logging.getLogger(LOGGER)
        self._handler: logging.Handler | None = None
        self._is_on = False
        if is_ours not in self._logger.filters:
            self._logger.addFilter(is_ours)

    @property
    def is_on(self) -> bool:
        """Whether lines are wanted now. Ray makes new handlers when that changes."""
        handlers = self._logger.handlers
        handler = handlers[-1] if handlers else None
        if handler is not self._handler:
            self._handler = handler
            self._is_on = self._is_wanted()
        return self._is_on

    def _is_wanted(self) -> bool:
        if not self._logger.isEnabledFor(logging.INFO):
            return False
        for handler in self._logger.handlers:
            fields = {"name": self._logger.name, "levelno": logging.INFO, ACCESS_FIELD: True}
            if handler.filter(logging.makeLogRecord(fields)):
                return True
        return False

    def write(self, record: RequestRecord) -> None:
        """Writes the line of a request that has ended."""
        if not self.is_on:
            return
        fields = describe(record)
        self._logger.info(
            "%s %s %s %.1fms",
            record.method,
            record.path,
            record.status or record.outcome.upper(),
            fields["total_ms"],
            extra={**fields, ACCESS_FIELD: True, "log_to_stderr": False},
        )


def describe(record: RequestRecord) -> dict[str, Any]:
    """Returns the fields of a request's line; times are in milliseconds."""
    usage = record.usage
    fields: dict[str, Any] = {
        "request_id": record.request_id,
        "method": record.method,
        "path": record.path,
        "model": record.model or None,
        "key_name": record.key_name,
        "status": record.status or None,
        _OURS: record.outcome,
        "queue_ms": round(1000 * record.queued_s, 3),
        "first_byte_ms": None,
        "total_ms": round(1000 * (record.last_s - record.began_s), 3),
        "prompt_tokens": usage.prompt_tokens,
        "cached_tokens": usage.cached_tokens,
        "completion_tokens": usage.completion_tokens,
    }
    if record.first_s is not None:
        fields["first_byte_ms"] = round(1000 * (record.first_s - record.began_s), 3)
    if record.trace_id:
        fields["trace_id"] = record.trace_id
    if usage.images:
        fields["images"] = usage.images
    if usage.audio_s:
        fields["audio_s"] = round(usage.audio_s, 3)
    return fields


def is_ours(record: logging.LogRecord) -> bool:
    """A filter that drops Ray Serve's own lines for requests, and nothing else."""
    return not getattr(record, ACCESS_FIELD, False) or hasattr(record, _OURS)
