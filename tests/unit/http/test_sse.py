from __future__ import annotations

import pytest

from truthgpt_serve.http.sse import (
    MAX_HELD_BYTES,
    EventSplitter,
    EventTooLargeError,
    WholeEvents,
    format_event,
    read_data,
    split_events,
)


@pytest.mark.parametrize(
    ("data", "whole"),
    [
        (b"a\n\nb", b"a\n\n"),
        (b"a\r\n\r\nb\r\n", b"a\r\n\r\n"),
        (b"a\n\nb\n\n", b"a\n\nb\n\n"),
        (b"\n\nb", b"\n\n"),
        (b"a\n", b""),
        (b"a\r\r", b"a\r\r"),
        (b"a" * (MAX_HELD_BYTES + 1), b"a" * (MAX_HELD_BYTES + 1)),
    ],
)
def test_event_ends_are_found(data: bytes, whole: bytes) -> None:
    assert WholeEvents().feed(data) == whole
    events = WholeEvents()
    pieces = [events.feed(data[at : at + 1]) for at in range(len(data))]
    assert b"".join(pieces) == whole
    assert events.finish() == data[len(whole) :]


def test_events_are_whole() -> None:
    events = WholeEvents()
    assert events.feed(b"data: a\n") == b""
    assert events.feed(b"\ndata: b\n\nda") == b"data: a\n\ndata: b\n\n"
    assert events.between
    assert events.feed(b"ta: c\r\n\r\n") == b"data: c\r\n\r\n"
    assert events.feed(b"data: ") == b""
    assert (events.finish(), events.between) == (b"data: ", False)


def test_an_event_that_is_too_long_to_wait_passes_in_pieces() -> None:
    events = WholeEvents()
    piece = b"data: " + b"x" * MAX_HELD_BYTES
    assert events.feed(piece) == piece
    assert not events.between
    assert events.feed(b"x\n\n") == b"x\n\n"
    assert events.between


def test_the_data_of_events() -> None:
    stream = b": hello\n\nevent: a\ndata: 1\n\ndata:2\r\ndata: 3\r\n\r\ndata: [DONE]\n\n"
    assert list(read_data(stream)) == [b"1", b"2\n3", b"[DONE]"]


def test_written_events_are_split_again() -> None:
    events = [format_event(b"{}"), format_event(b"1", "delta"), b"data: 2\r\n\r\n", b"data: 3\r\r"]
    assert events[:2] == [b"data: {}\n\n", b"event: delta\ndata: 1\n\n"]
    assert split_events(b"".join(events)) == events
    assert split_events(b"data: 1\n\ndata: half") == [b"data: 1\n\n", b"data: half"]
    assert split_events(b"") == []


def test_data_is_read_from_pieces() -> None:
    reader = EventSplitter()
    pieces = [b"id: 1\ndata: a\nda", b"ta:b\n\n", b"data: c\n"]
    assert [list(reader.feed(piece)) for piece in pieces] == [[], [b"a\nb"], []]
    assert list(reader.finish()) == [b"c"]


def test_an_event_without_an_end_is_given_up() -> None:
    reader = EventSplitter(max_event_bytes=1000)
    for _ in range(10):
        assert not list(reader.feed(b"x" * 100))
    with pytest.raises(EventTooLargeError, match="more than 1000 bytes"):
        reader.feed(b"x")
