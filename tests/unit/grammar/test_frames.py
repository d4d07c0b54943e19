from __future__ import annotations

from truthgpt_serve.grammar.frames import FrameReader, frame


def test_frames_come_whole_however_they_are_cut() -> None:
    contents = [b"", b"a", b"b" * 1000]
    data = b"".join(map(frame, contents))
    reader = FrameReader()
    cut = [data[i : i + 7] for i in range(0, len(data), 7)]
    assert [content for part in cut for content in reader.feed(part)] == contents
