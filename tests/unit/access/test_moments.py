"""Moments as people, the file and YAML write them."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone

import pytest

from truthgpt_serve.access.moments import as_text, read_expiry, read_moment, write_moment

NOW = datetime(2027, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2027-01-31", "2027-01-31T00:00:00Z"),
        ("2027-01-31T12:00:00Z", "2027-01-31T12:00:00Z"),
        ("2027-01-31T12:00:00+02:00", "2027-01-31T10:00:00Z"),
        ("90d", "2027-04-01T00:00:00Z"),
        ("12h", "2027-01-01T12:00:00Z"),
        ("2w", "2027-01-15T00:00:00Z"),
    ],
)
def test_expiries(text: str, moment: str) -> None:
    assert write_moment(read_expiry(text, NOW)) == moment


@pytest.mark.parametrize("text", ["", "soon", "90", "2027-13-01", "99999w9", "-1d", "9999999d"])
def test_what_is_no_moment(text: str) -> None:
    with pytest.raises(ValueError, match="is no moment"):
        read_expiry(text, NOW)


def test_what_cannot_be_written_in_utc() -> None:
    last = read_expiry("9999-12-31T23:59:59-14:00", NOW)
    with pytest.raises(ValueError, match="beyond the years"):
        write_moment(last)
    assert write_moment(read_expiry("0999-01-31", NOW)) == "0999-01-31T00:00:00Z"


def test_what_yaml_takes_for_dates() -> None:
    assert as_text(date(2027, 1, 31)) == "2027-01-31"
    assert as_text(datetime(2027, 1, 31, 12)) == "2027-01-31T12:00:00Z"
    assert as_text("x") == "x"
    last = datetime(9999, 12, 31, 23, tzinfo=timezone(timedelta(hours=-14)))
    assert as_text(last) == "9999-12-31T23:00:00-14:00"  # in UTC there is no such year
    assert read_moment("2027-01-31").tzinfo is UTC
