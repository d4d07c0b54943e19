"""Causes of an outage are said once each, and no more of them than a log bears."""

from __future__ import annotations

import pytest

from truthgpt_serve.access.counting.outage import MAX_CAUSES, Outage

PIPELINE = (
    "Command # %d (EVALSHA %s 2...) of pipeline caused error: ('%s script: %s, on line %d.',)"
)


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records]


def test_each_cause_is_said_once_in_an_outage(caplog: pytest.LogCaptureFixture) -> None:
    outage = Outage()
    outage.end()
    assert messages(caplog) == []  # it was not away
    for _ in range(3):
        outage.note(ConnectionError("Connection closed by server."))
        outage.note(ConnectionError("Error 111 connecting"))
        outage.note(TimeoutError())
    said = messages(caplog)
    assert [each.rpartition("for itself: ")[2] for each in said] == [
        "ConnectionError: Connection closed by server.",
        "ConnectionError: Error 111 connecting",
        "TimeoutError",
    ]
    outage.end()
    outage.end()
    outage.note(TimeoutError())
    assert len(messages(caplog)) == len(said) + 2


def test_one_cause_in_other_words_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    outage = Outage()
    for at, script in enumerate(("aa", "bb", "cc")):
        outage.note(RuntimeError(PIPELINE % (at, script, "OOM not allowed", script, at)))
    assert len(messages(caplog)) == 1


def test_causes_that_always_differ_do_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    outage = Outage()
    for letter in "abcdefghijklm":
        outage.note(RuntimeError(f"strange {letter}"))
    assert len(messages(caplog)) == MAX_CAUSES
