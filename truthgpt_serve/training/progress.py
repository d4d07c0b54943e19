"""Draws a run's events: a bar with rate and time left on a terminal, a line now and then elsewhere.

Knows nothing of trainers; it follows what rank 0 has written.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections import deque
from collections.abc import Mapping
from typing import Any, TextIO

WINDOW_STEPS = 50
"""Steps over which the rate is taken: enough to be steady, few enough to follow a change."""
LINE_EVERY_S = 10.0
BAR_CHARS = 24


class Progress:
    """Takes events and shows them.

    Args:
        stream: Where to; a terminal gets one line that changes.
        line_every_s: Seconds between lines where it is none.
    """

    def __init__(self, stream: TextIO = sys.stderr, *, line_every_s: float = LINE_EVERY_S) -> None:
        self._stream = stream
        self._is_terminal = stream.isatty()
        self._line_every_s = line_every_s
        self._last_line = 0.0
        self._num_steps = 0
        self._units = "tokens"
        self._recent: deque[tuple[float, int, int]] = deque(maxlen=WINDOW_STEPS)
        self._bar_shown = False

    def show(self, event: Mapping[str, Any]) -> None:
        """Shows one event of the run."""
        kind = event["event"]
        if kind == "begin":
            self._num_steps, self._units = event["num_steps"], event["units"]
            self._recent.append((event["at"], event["first_step"], 0))
        elif kind == "step":
            self._recent.append((event["at"], event["step"], event["num_units"]))
            self._show_step(event)
        elif kind == "evaluated":
            numbers = [
                f"{name} {value:.4g}"
                for name, value in event.items()
                if name not in ("event", "at", "step") and isinstance(value, int | float)
            ]
            self.line(f"evaluated at step {event['step']:,}: {', '.join(numbers)}")
        elif kind == "note":
            self.line(str(event["message"]))

    def _show_step(self, event: Mapping[str, Any]) -> None:
        step = event["step"]
        text = f"step {step:,}/{self._num_steps:,}  loss {event['loss']:.4f}  {self._pace(step)}"
        if self._is_terminal:
            width = shutil.get_terminal_size().columns - 1
            done = int(BAR_CHARS * step / max(1, self._num_steps))
            bar = f"[{'#' * done}{'.' * (BAR_CHARS - done)}] {text}"
            self._stream.write(f"\r{bar[:width]:<{width}}")
            self._stream.flush()
            self._bar_shown = True
            return
        now = time.monotonic()
        if now - self._last_line >= self._line_every_s or step == self._num_steps:
            self._last_line = now
            self.line(text)

    def _pace(self, step: int) -> str:
        (start, first, _), (end, last, _) = self._recent[0], self._recent[-1]
        seconds = end - start
        if seconds <= 0 or last <= first:
            return ""
        num_units = sum(units for _, _, units in list(self._recent)[1:])
        left = (self._num_steps - step) * seconds / (last - first)
        return f"{num_units / seconds:,.0f} {self._units}/s  {duration(left)} left"

    def line(self, text: str) -> None:
        """Writes a line that stays."""
        start = "\n" if self._bar_shown else ""
        self._bar_shown = False
        self._stream.write(f"{start}{text}\n")
        self._stream.flush()

    def close(self) -> None:
        """Leaves the cursor at the beginning of a line."""
        if self._bar_shown:
            self._stream.write("\n")
            self._stream.flush()
            self._bar_shown = False


def duration(seconds: float) -> str:
    """Returns seconds as `1:02:03` or `2:03`."""
    minutes, second = divmod(int(seconds + 0.5), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
