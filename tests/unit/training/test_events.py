"""Events of a run, followed while they are written."""

from __future__ import annotations

from pathlib import Path

from truthgpt_serve.training.events import EventReader, EventWriter, forget_after, read_events


def test_events_are_followed_and_forgotten(tmp_path: Path) -> None:
    writer = EventWriter(tmp_path)
    reader = EventReader(tmp_path)
    for step in (1, 2, 3):
        writer.write("step", step=step, loss=float(step))
    assert [event["step"] for event in reader.read()] == [1, 2, 3]
    assert not list(reader.read())
    with (tmp_path / "logs" / "events.jsonl").open("a") as stream:
        stream.write('{"event": "step", "st')  # a kill in the middle of a line
    assert not list(reader.read())
    assert [event["step"] for event in read_events(tmp_path)] == [1, 2, 3]
    forget_after(tmp_path, 2)
    assert [event["step"] for event in read_events(tmp_path)] == [1, 2]
    writer.close()


def test_a_line_that_was_cut_spoils_no_other(tmp_path: Path) -> None:
    writer = EventWriter(tmp_path)
    writer.write("step", step=1, loss=1.0)
    writer.close()
    with (tmp_path / "logs" / "events.jsonl").open("a") as stream:
        stream.write('{"event": "step", "st')  # a full disk
    reader = EventReader(tmp_path)
    again = EventWriter(tmp_path)
    again.write("step", step=2, loss=1.0)
    again.close()
    assert [event["step"] for event in reader.read()] == [2]
    assert [event["step"] for event in read_events(tmp_path)] == [1, 2]
    forget_after(tmp_path, 0)
    assert not read_events(tmp_path)
