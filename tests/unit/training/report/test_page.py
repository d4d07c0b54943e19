"""The page on runs: what it shows, that nothing in it becomes HTML, and the command."""

from __future__ import annotations

import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from click.testing import CliRunner
from PIL import Image

from truthgpt_serve.cli import main
from truthgpt_serve.training.events import EventWriter
from truthgpt_serve.training.generation.record import Sample, write_samples
from truthgpt_serve.training.report.curves import MAX_POINTS, Line, draw, thinned
from truthgpt_serve.training.run_folder import write_json

HOSTILE = "</td><script>alert(1)</script><img src=x onerror='a()'>\" &"


class Elements(HTMLParser):
    """Collects elements, their attributes and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def make_run(folder: Path, name: str, *, first: float = 4.0, **more: Any) -> Path:
    folder.mkdir()
    config = {"run_name": name, "data": {"dataset": name}, "training": {"epochs": 3}, **more}
    record = {"config": config, "versions": {"torch": "2.0", name: name}}
    write_json(folder / "run.json", record)
    writer = EventWriter(folder)
    writer.write("begin", at=0.0, num_steps=3, first_step=0, units="tokens")
    for step in (1, 2, 3):
        writer.write("step", at=1.0, step=step, loss=first / step, learning_rate=1e-3, num_units=9)
    writer.write("evaluated", at=2.0, step=3, loss=first, **{f"{name}": 1.0})
    writer.write("failed", at=2.0, message=f"{name}\ud800", foreseen=True)
    writer.close()
    return folder


def report(*arguments: object) -> Any:
    return CliRunner().invoke(main, ["report", *map(str, arguments)])


def test_a_page_shows_a_run_without_scripts_or_outside_addresses(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", "tales")
    result = report(run)
    assert result.stdout == f"wrote {run / 'report.html'}\n", result.stderr
    page = (run / "report.html").read_text()
    found = Elements(page)
    assert "train/loss: tales ends at 1.333" in found.text
    assert "eval/loss" in found.text
    assert "failed: tales?" in found.text
    assert "training.epochs" in found.text
    assert "script" not in found.tags
    assert not [pair for pair in found.attributes if pair[0] in ("src", "href")]
    assert "http" not in page.replace('http-equiv="Content', "")


def test_nothing_of_a_run_becomes_html(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", HOSTILE, notes={HOSTILE: HOSTILE})
    assert report(run).exit_code == 0
    found = Elements((run / "report.html").read_text())
    assert "<script>alert(1)</script>" in found.text
    assert not found.tags & {"script", "img"}
    assert not [name for name, _ in found.attributes if name.startswith("on")]


def test_samples_stand_side_by_side_and_nothing_of_them_becomes_html(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", "tales")
    for step in range(1, 10):
        image = Image.new("RGB", (8, 8), "red")
        text = Sample(HOSTILE, text=f"{HOSTILE} {step}", fault="late")
        write_samples(run, step, [text, Sample("a red square", image=image)])
    assert report(run).exit_code == 0
    page = (run / "report.html").read_text()
    found = Elements(page)
    assert f"{HOSTILE} 9" in found.text
    assert "late" in found.text
    assert "script" not in found.tags
    assert not [name for name, _ in found.attributes if name.startswith("on")]
    steps = [step for step in range(1, 10) if f">step {step}<" in page]
    assert steps == [1, 5, 6, 7, 8, 9]
    sources = [value for name, value in found.attributes if name == "src"]
    assert len(sources) == 6
    assert all(value and value.startswith("data:image/png;base64,") for value in sources)


def test_each_of_several_workers_is_shown(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", "tales")
    uses = [{"units_per_second": 10.0 + n, "memory_bytes": (3 + n) << 20} for n in (0, 1)]
    writer = EventWriter(run)
    writer.write("step", at=3.0, step=4, loss=1.0, learning_rate=1e-3, num_units=9, workers=uses)
    writer.close()
    assert report(run).exit_code == 0
    text = Elements((run / "report.html").read_text()).text
    assert "tales010.03 MiB" in text
    assert "tales111.04 MiB" in text


def test_secrets_of_the_configuration_are_hidden(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", "a", serving={"engine": {"api_key": "sk-123", "top_k": "5"}})
    assert report(run).exit_code == 0
    page = (run / "report.html").read_text()
    assert "sk-123" not in page
    assert "serving.engine.api_key" in page


def test_runs_are_compared_on_one_page(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, "same", first=first) for name, first in (("a", 1), ("b", 2))]
    out = tmp_path / "both.html"
    assert report(*runs, "--out", out).exit_code == 0
    page = out.read_text()
    assert f"{runs[0]} ends at 0.3333, {runs[1]} ends at 0.6667" in page
    assert 'class="line-0"' in page
    assert 'class="line-1"' in page


def test_what_is_no_run_is_one_line(tmp_path: Path) -> None:
    result = report(tmp_path)
    assert result.exit_code == 2
    assert (
        result.stderr
        == f"{tmp_path}: there is no run (name the folder of a run, such as runs/tales)\n"
    )
    assert "at most 12" in report(*[tmp_path] * 13).stderr
    run = make_run(tmp_path / "a", "a")
    assert "cannot be written" in report(run, "--out", tmp_path / "no" / "x.html").stderr


def test_curves_are_bounded_and_leave_out_what_is_no_number() -> None:
    assert draw("x", [Line("a", [])]) == ""
    assert draw("x", [Line("a", [(1, math.nan)])]) == ""
    assert "<circle" in draw("x", [Line("a", [(1, 2.0)])])
    assert "nan" not in draw("x", [Line("a", [(1, 2.0), (2, math.inf), (3, 2.0)])])
    assert thinned([(step, 1.0) for step in range(10_000)])[-1] == (9999, 1.0)
    assert len(thinned([(step, 1.0) for step in range(10_000)])) <= MAX_POINTS
