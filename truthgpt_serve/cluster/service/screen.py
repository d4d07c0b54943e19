"""What `make serve` shows: states while the service starts, changes later, and causes of failures.

Everything else that the service prints is in its log file, unless the user asked to see it.
"""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from truthgpt_serve.cluster.service.advice import find_advice, find_cause, find_full_disk
from truthgpt_serve.cluster.service.console import PREFIX, say, write
from truthgpt_serve.cluster.service.next_steps import describe_service, program_name
from truthgpt_serve.cluster.service.readiness import (
    FAILED,
    RUNNING,
    ModelStatus,
    Readiness,
    describe_load,
)
from truthgpt_serve.cluster.service.service_log import ServiceLog
from truthgpt_serve.cluster.start_errors import hide_secrets
from truthgpt_serve.terminal import clean

REPORT_PERIOD_S = 30.0
"""How often a start that takes long says what it waits for, where there is no table."""
_WORDS = {
    "NOT_STARTED": "starting",
    "DEPLOYING": "loading",
    RUNNING: "running",
    "UNHEALTHY": "unhealthy",
    FAILED: "failed",
    "DELETING": "being removed",
}
_STYLES = {RUNNING: "green", FAILED: "red", "UNHEALTHY": "red"}
_CHECK = re.compile(r"(fault|note): |\d+ faults?$")
"""Lines of the check of the Serve file."""


def word_for(status: str) -> str:
    """Returns a state of Ray Serve's in a word of the user's."""
    return _WORDS.get(status, status.lower())


class Screen:
    """Shows one service, on a terminal or as lines in a pipe.

    Args:
        log: Where the service's output is.
        address: Where the service answers.
        names: The models that are expected.
        playground: Whether the service has the pages at `/ui`.
        verbose: Whether to show all output.
        console: Where the table appears; by default standard output.
    """

    def __init__(
        self,
        log: ServiceLog,
        address: str,
        names: Sequence[str],
        *,
        playground: bool = False,
        verbose: bool = False,
        console: Console | None = None,
    ) -> None:
        self._log = log
        self._address = address
        self._names = names
        self._playground = playground
        self._verbose = verbose
        self._console = console or Console()
        self._states: dict[str, ModelStatus] = {}
        self._seen: dict[str, ModelStatus] = {}
        self._told: set[tuple[str, ModelStatus]] = set()
        self._last: Readiness | None = None
        self._live: Live | None = None
        self._up = False
        self._started_s = self._report_s = self._look_s = 0.0
        self._running_s: dict[str, float] = {}

    @property
    def log(self) -> ServiceLog:
        """Where the service's output is."""
        return self._log

    @contextmanager
    def start(self) -> Iterator[None]:
        """Shows a start and what follows, while the body runs."""
        self._up = False
        self._started_s = time.monotonic()
        self._report_s = self._look_s = self._started_s + REPORT_PERIOD_S
        self._running_s, self._states, self._seen = {}, {}, {}
        self._told.clear()
        if self._console.is_terminal and not self._verbose:
            self._live = Live(self, console=self._console, transient=True)
            self._live.start()
        try:
            yield
        finally:
            self._stop_table()
            self.pass_on()

    def _stop_table(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            live.stop()

    def pass_on(self) -> None:
        """Shows what is new in the log and meant for the user; with `verbose`, all of it."""
        for line in self._log.read_new():
            if self._verbose or line.startswith(PREFIX) or _CHECK.match(line):
                write(line if self._verbose else _clean(line))

    def show(self, now: Readiness) -> bool:
        """Shows what changed; returns whether every model runs or has failed."""
        now_s = time.monotonic()
        for name, model in now.models.items():
            if model.status == RUNNING:
                self._running_s.setdefault(name, now_s - self._started_s)
        if self._up:
            self._show_changes(now)
            return True
        if now.answered:
            self._states = dict(now.models)
        if now.settled:
            self._stop_table()
            self._up = True
            self._show_up(now, now_s - self._started_s)
        else:
            if self._live is None:
                self._show_progress(now, now_s)
            self._show_full_disk(now_s)
        return self._up

    def _show_full_disk(self, now_s: float) -> None:
        """Says it once in a while: Ray itself waits for room, and says nothing to the user."""
        if now_s >= self._look_s:
            self._look_s = now_s + REPORT_PERIOD_S
            if full := find_full_disk(self._log.tail()):
                say(full)

    def _show_progress(self, now: Readiness, now_s: float) -> None:
        seconds = now_s - self._started_s
        for name, model in now.models.items():
            # Once each: the routers take turns in answering, and one may know less than another.
            if (name, model) not in self._told:
                self._told.add((name, model))
                say(f"{name}: {_describe(model)} ({seconds:.0f} s)")
                self._report_s = now_s + REPORT_PERIOD_S
        if now_s >= self._report_s:
            self._report_s = now_s + REPORT_PERIOD_S
            waits_for = now.describe_waiting()
            say(f"not ready after {seconds:.0f} s, waits for {waits_for}{describe_load()}")

    def _show_up(self, now: Readiness, seconds: float) -> None:
        failed = {name: model for name, model in now.models.items() if model.status == FAILED}
        if failed:
            say(f"up after {seconds:.1f} s, without {', '.join(failed)}: {self._address}")
        else:
            say(f"ready after {seconds:.1f} s: {self._address}")
        order = [*self._names, *sorted(self._running_s)]
        seconds_of = {name: self._running_s[name] for name in order if name in self._running_s}
        for line in describe_service(self._address, seconds_of, playground=self._playground):
            write(line)
        for name, model in failed.items():
            say(f"{name}: {_describe(model)}; `{program_name()} why {shlex.quote(name)}` says more")
        say(f"log: {self._log.path}; Ctrl-C or `make stop` ends the service")

    def _show_changes(self, now: Readiness) -> None:
        """Tells what two answers in a row say: one router may know less than another."""
        if not now.answered or now is self._last:
            return
        self._last = now
        seen, self._seen = self._seen, dict(now.models)
        for name in self._states.keys() | now.models.keys():
            before, model = self._states.get(name), now.models.get(name)
            if _status(model) == _status(before) or _status(model) != _status(seen.get(name)):
                continue
            if model is None:
                say(f"{name}: removed")
                del self._states[name]
            else:
                say(f"{name}: {_describe(model)}")
                self._states[name] = model

    def show_cause(self) -> None:
        """Shows the end of the log where something failed, and what may help."""
        self.pass_on()
        if self._verbose:
            return
        lines = self._log.tail()
        if cause := find_cause(lines):
            say(f"the last lines of {self._log.path} on it:")
            for line in cause:
                write(f"    {_clean(line)[:300]}")
        else:
            say(f"its output: {self._log.path}")
        if advice := find_advice(lines):
            say(advice)

    def __rich__(self) -> Table:
        """The table while the service starts."""
        seconds = time.monotonic() - self._started_s
        table = Table(box=None, pad_edge=False, show_header=True, header_style="dim")
        for title, options in (
            ("model", {"no_wrap": True}),
            ("state", {"no_wrap": True}),
            ("seconds", {"justify": "right", "no_wrap": True}),
            ("", {"no_wrap": True, "overflow": "ellipsis", "style": "dim"}),
        ):
            table.add_column(title, **options)
        for name in self._states or self._names:
            model = self._states.get(name)
            taken = self._running_s.get(name, seconds)
            status = model.status if model else ""
            word = word_for(status) if model else "waits for Ray"
            message = _one_line(model.message) if model else ""
            state = Text(word, _STYLES.get(status, "yellow"))
            # As `Text`: brackets in a name or a message are no markup.
            table.add_row(Text(_one_line(name)), state, f"{taken:.0f}", Text(message))
        return table


def _status(model: ModelStatus | None) -> str | None:
    return None if model is None else model.status


def _describe(model: ModelStatus) -> str:
    message = _one_line(model.message)
    return f"{word_for(model.status)}: {message}" if message else word_for(model.status)


def _one_line(text: str) -> str:
    return " ".join(_clean(text).split())[:400]


def _clean(text: str) -> str:
    return hide_secrets(clean(text))
