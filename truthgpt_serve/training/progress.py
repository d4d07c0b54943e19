"""Draws a run's events: a bar with rate and time left on a terminal, a line now and then elsewhere.

It follows what rank 0 has written.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Mapping
from typing import Any, TextIO

from tqdm import tqdm

WINDOW_STEPS = 50
"""Steps over which the rate is taken: enough to be steady, few enough to follow a change."""
LINE_EVERY_S = 10.0


class Progress:
    """Takes events and shows them.

    Args:
        stream: Where to; a terminal gets a bar below the lines that stay.
        line_every_s: Seconds between lines where it is none.
    """

    def __init__(self, stream: TextIO = sys.stderr, *, line_every_s: float = LINE_EVERY_S) -> None:
        self._stream = stream
        self._line_every_s = line_every_s
        self._last_line = 0.0
        self._units = "tokens"
        self._recent: deque[tuple[float, int, int]] = deque(maxlen=WINDOW_STEPS)
        self._bar = tqdm(disable=True)

    def show(self, event: Mapping[str, Any]) -> None:
        """Shows one event of the run."""
        kind = event["event"]
        if kind == "begin":
            self.close()
            self._units = event["units"]
            self._recent.append((event["at"], event["first_step"], 0))
            self._bar = tqdm(
                total=event["num_steps"],
                initial=event["first_step"],
                file=self._stream,
                disable=None,  # without a terminal
                dynamic_ncols=True,
                ascii=".#",
                bar_format="[{bar:24}] {desc}",
            )
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
        elif kind == "sampled":
            faults = [f"; {fault}" for fault in dict.fromkeys(event["faults"])]
            self.line(f"{event['number']} samples at step {event['step']:,}{''.join(faults[:3])}")
        elif kind == "note":
            self.line(str(event["message"]))

    def _show_step(self, event: Mapping[str, Any]) -> None:
        step, total = event["step"], self._bar.total
        text = f"step {step:,}/{total:,}  loss {event['loss']:.4f}  {self._pace(step)}"
        if not self._bar.disable:
            self._bar.set_description_str(text, refresh=step == total)
            self._bar.update(step - self._bar.n)
            return
        now = time.monotonic()
        if now - self._last_line >= self._line_every_s or step == total:
            self._last_line = now
            self.line(text)

    def _pace(self, step: int) -> str:
        """Returns the rate by the events' own clock: they are read several at a time."""
        (start, first, _), (end, last, _) = self._recent[0], self._recent[-1]
        seconds = end - start
        if seconds <= 0 or last <= first:
            return ""
        num_units = sum(units for _, _, units in list(self._recent)[1:])
        left = (self._bar.total - step) * seconds / (last - first)
        rate = f"{num_units / seconds:,.0f} {self._units}/s"
        return f"{rate}  {tqdm.format_interval(left)} left"

    def line(self, text: str) -> None:
        """Writes a line that stays."""
        tqdm.write(text, file=self._stream)
        self._stream.flush()

    def close(self) -> None:
        """Leaves the bar as it is, and the cursor at the beginning of a line."""
        self._bar.close()
