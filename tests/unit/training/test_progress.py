"""Progress on a terminal and in a log."""

from __future__ import annotations

import io

from truthgpt_serve.training.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_has_rate_and_time_left() -> None:
    stream = Terminal()
    progress = Progress(stream)
    progress.show({"event": "begin", "num_steps": 100, "first_step": 0, "units": "tokens", "at": 0})
    for step in range(1, 11):
        event = {"event": "step", "step": step, "loss": 2.0, "num_units": 500, "at": step * 0.5}
        progress.show(event)
    progress.show({"event": "evaluated", "step": 10, "loss": 1.5, "at": 5.5})
    progress.close()
    text = stream.getvalue()
    assert "[##......................] step 10/100  loss 2.0000  1,000 tokens/s  00:45 left" in text
    assert "\revaluated at step 10: loss 1.5\n" in text
    assert text.endswith("left\n")


def test_without_a_terminal_progress_is_a_line_now_and_then() -> None:
    stream = io.StringIO()
    progress = Progress(stream, line_every_s=1000)
    progress.show({"event": "begin", "num_steps": 50, "first_step": 0, "units": "images", "at": 0})
    for step in range(1, 51):
        event = {"event": "step", "step": step, "loss": 1.0, "num_units": 4, "at": step * 1.0}
        progress.show(event)
    lines = stream.getvalue().splitlines()
    assert len(lines) <= 2
    assert lines[-1] == "step 50/50  loss 1.0000  4 images/s  00:00 left"
