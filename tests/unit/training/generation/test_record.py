"""Samples on the disk: whole, bounded in number and size, and read again."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from truthgpt_serve.training.generation.record import (
    MAX_CHARS,
    MAX_EDGE,
    MAX_KEPT,
    KeptSample,
    Sample,
    forget_samples_after,
    read_samples,
    write_samples,
)


def test_texts_and_images_are_read_again_within_bounds(tmp_path: Path) -> None:
    image = Image.new("RGB", (2 * MAX_EDGE, MAX_EDGE), "red")
    samples = [
        Sample("a\ud800", text="b" * (MAX_CHARS + 1)),
        Sample("c", image=image),
        Sample("d", fault="left out"),
    ]
    write_samples(tmp_path, 7, samples)
    text, painted, missing = read_samples(tmp_path)
    assert text == KeptSample(7, "a?", "b" * MAX_CHARS, None, "")
    assert missing == KeptSample(7, "d", None, None, "left out")
    assert painted.image is not None
    with Image.open(painted.image) as read:
        assert read.size == (MAX_EDGE, MAX_EDGE // 2)
    write_samples(tmp_path, 7, samples[2:])
    assert read_samples(tmp_path) == [missing]
    assert [path.name for path in (tmp_path / "samples").iterdir()] == ["step-7"]


def test_the_first_and_the_newest_are_kept(tmp_path: Path) -> None:
    for step in range(1, MAX_KEPT + 4):
        write_samples(tmp_path, step, [Sample("a", text=str(step))])
    steps = [sample.step for sample in read_samples(tmp_path)]
    assert steps == [1, *range(5, MAX_KEPT + 4)]
    forget_samples_after(tmp_path, 5)
    assert [sample.step for sample in read_samples(tmp_path)] == [1, 5]
    forget_samples_after(tmp_path, 0)
    assert read_samples(tmp_path) == read_samples(tmp_path / "none") == []


def test_rows_that_are_none_are_left_out(tmp_path: Path) -> None:
    write_samples(tmp_path, 3, [Sample("a", text="b")])
    file = tmp_path / "samples" / "step-3" / "samples.json"
    (row,) = json.loads(file.read_text())
    file.write_text(json.dumps([None, 1, ["a"], {**row, "text": 5}, {**row, "image": {}}, row]))
    assert read_samples(tmp_path) == [KeptSample(3, "a", "b", None, "")]
