"""Serves in the foreground: starts `serve run`, watches its processes, and starts it again."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from types import FrameType

from truthgpt_serve.cluster.processes import end_run, find_run, read_process, send_signal
from truthgpt_serve.cluster.service.console import say
from truthgpt_serve.cluster.service.parts import Watch
from truthgpt_serve.cluster.service.readiness import PERIOD_S as ASK_PERIOD_S
from truthgpt_serve.cluster.service.readiness import ReadinessPoll, describe_load
from truthgpt_serve.cluster.service.retries import Retries
from truthgpt_serve.cluster.service.run_file import STOP_S
from truthgpt_serve.cluster.service.screen import Screen

GRACE_S = 15.0
"""How long running requests may take to finish after Ctrl-C or `make stop`."""
ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
WRONG_FILE = 2
"""Exit status of the runner for a Serve file with faults: trying again would not help."""
PERIOD_S = 0.2
READY_PERIOD_S = 0.5
"""How often the processes are looked at: while the service starts, and when it is ready."""


class Supervisor:
    """Keeps one service running.

    Args:
        command: Starts the service and stays in the foreground, as `serve run` does.
        environment: Its environment, with the run's variable.
        run_id: The run.
        address: Where the service answers.
        busy: Returns what stands in the way of a start, such as a port that is taken.
        screen: Shows what happens; the service's output goes to its log.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        run_id: str,
        address: str,
        busy: Callable[[], Sequence[str]],
        screen: Screen,
    ) -> None:
        self._command = command
        self._environment = environment
        self._run_id = run_id
        self._address = address
        self._busy = busy
        self._screen = screen
        self._interrupts = 0
        self._retries = Retries()

    def run(self) -> int:
        """Serves until it is interrupted or fails for good; returns the exit status."""
        for number in ENDING_SIGNALS:
            signal.signal(number, self._interrupt)
        while True:
            status = self._serve_once()
            if status is not None:
                say("stopped")
                return 0 if self._interrupts else status
            if not self._wait_for_next_try():
                return 0 if self._interrupts else 1

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self._interrupts += 1

    def _serve_once(self) -> int | None:
        """Starts and follows the service once; returns the exit status, or None to try again."""
        # A session of its own: the terminal's Ctrl-C comes to this process only, which passes it
        # on to the one that must see it first.
        fresh = self._retries.num_failures == 0
        with self._screen.log.open_for_writing(fresh=fresh) as output:
            child = subprocess.Popen(
                self._command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        status: int | None = 1
        in_order = False
        try:
            status = self._follow(child)
            in_order = status is not None
        finally:
            self._end(child, in_order=in_order)
        return status

    def _follow(self, child: subprocess.Popen[bytes]) -> int | None:
        watch = Watch(self._run_id)
        up = False
        with self._screen.start(), ReadinessPoll(self._address).running() as poll:
            while not self._interrupts:
                self._screen.pass_on()
                if (status := child.poll()) is not None:
                    return self._note_exit(status, was_ready=up)
                if self._note_events(watch, was_ready=up):
                    return None
                if self._screen.show(poll.latest) and not up:
                    up = True
                    watch.settle()
                    poll.period_s = ASK_PERIOD_S
                time.sleep(READY_PERIOD_S if up else PERIOD_S)
        return 0

    def _note_exit(self, status: int, *, was_ready: bool) -> int | None:
        if status == WRONG_FILE:
            return status
        what = "`serve run` ended" if was_ready else "the start failed: `serve run` ended"
        self._fail(f"{what} with status {status}", was_ready=was_ready)
        return None

    def _note_events(self, watch: Watch, *, was_ready: bool) -> bool:
        """Says what happened; returns whether the service has to start again."""
        for event in watch.look():
            if event.fatal:
                self._fail(event.text, was_ready=was_ready)
                return True
            say(event.text)
        return False

    def _fail(self, text: str, *, was_ready: bool) -> None:
        say(f"{text}{describe_load()}")
        self._screen.show_cause()
        self._retries.count(time.monotonic(), was_ready=was_ready)

    def _wait_for_next_try(self) -> bool:
        """Waits before the next try; returns False when there is none."""
        if self._interrupts:
            say("stopped")
            return False
        delay_s = self._retries.delay_s
        if delay_s is None:
            failures = self._retries.num_failures
            say(f"giving up after {failures} failures; all output: {self._screen.log.path}")
            return False
        say(f"starting again in {delay_s:g} s; {self._retries.left} tries left")
        deadline = time.monotonic() + delay_s
        while time.monotonic() < deadline or self._busy():
            if self._interrupts:
                say("stopped")
                return False
            if time.monotonic() > deadline + STOP_S:
                for line in self._busy():
                    say(line)
                return False
            time.sleep(PERIOD_S)
        return True

    def _end(self, child: subprocess.Popen[bytes], *, in_order: bool) -> None:
        """Ends all processes; in order, running requests may finish first."""
        present = find_run(self._run_id)
        leader = read_process(child.pid)
        if leader is not None and in_order:
            say("stopping (again: without waiting for running requests)")
            send_signal(leader, signal.SIGINT)
            deadline = time.monotonic() + GRACE_S
            while child.poll() is None and self._interrupts < 2 and time.monotonic() < deadline:
                time.sleep(0.1)
        try:
            end_run(self._run_id, timeout_s=STOP_S, known=present)
            child.wait(timeout=5)
        except (TimeoutError, subprocess.TimeoutExpired) as error:
            raise SystemExit(f"[serve] {error}") from None
