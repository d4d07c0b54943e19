"""Points in time as the file with the keys and its command write them."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta
from typing import Any

FORM = "write it like 2027-01-31, 2027-01-31T12:00:00Z or 90d"
_SPAN = re.compile(r"(\d{1,5})([hdw])")
_UNITS = {"h": "hours", "d": "days", "w": "weeks"}


def write_moment(moment: datetime) -> str:
    """Returns a moment in UTC, to the second.

    Raises:
        ValueError: In UTC it is before the year 1 or after 9999.
    """
    try:
        return f"{moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec='seconds')}Z"
    except OverflowError as error:
        raise ValueError(f"{moment} is beyond the years 1 to 9999 in UTC") from error


def read_moment(text: str) -> datetime:
    """Returns the moment that a text means; a day alone is its beginning in UTC.

    Raises:
        ValueError: It means none.
    """
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def read_expiry(text: str, now: datetime) -> datetime:
    """Returns the moment that a text means, or a time from now such as `90d`.

    Raises:
        ValueError: It means none.
    """
    try:
        if found := _SPAN.fullmatch(text):
            return now + timedelta(**{_UNITS[found[2]]: int(found[1])})
        return read_moment(text)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{text[:40]!r} is no moment: {FORM}") from error


def as_text(value: Any) -> Any:
    """Returns what YAML takes for a date as text, and any other value unchanged."""
    if isinstance(value, datetime):
        moment = value if value.tzinfo is not None else value.replace(tzinfo=UTC)
        try:
            return write_moment(moment)
        except ValueError:
            return moment.isoformat()
    return value.isoformat() if isinstance(value, date) else value
