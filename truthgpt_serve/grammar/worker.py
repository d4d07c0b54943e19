"""The program that compiles grammars beside a replica: a process for each, timed and bounded.

It loads xgrammar and the tokenizer once and forks for every grammar, so that one which hangs,
crashes or takes all memory ends alone. Frames of JSON come on a socket whose descriptor is its only
argument; when the socket closes, everything ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import heapq
import json
import os
import resource
import selectors
import signal
import socket
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from truthgpt_serve.grammar.compile import Compiler, UnusableError
from truthgpt_serve.grammar.frames import FrameReader, frame

MIN_TURN_S = 2.0
"""A grammar's time where others wait."""

MAX_MEMORY_BYTES = 2**30
"""Memory of one grammar beyond what the process starts with."""

NICENESS = 5
"""Compiling makes way for the engine, and still has a fair part of a busy machine."""

_PR_SET_PDEATHSIG = 1


@dataclass(order=True)
class Job:
    """One grammar to compile; the shorter goes first."""

    length: int
    number: int
    kind: str = field(compare=False)
    text: str = field(compare=False)
    limit_s: float = field(compare=False)
    process: int = field(default=0, compare=False)
    started: float = field(default=0.0, compare=False)
    answer: bytes = field(default=b"", compare=False)


class Worker:
    """Takes jobs from the socket and gives each its process, in turn and in time."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._selector = selectors.DefaultSelector()
        self._frames = FrameReader()
        self._waiting: list[Job] = []
        self._running: dict[int, Job] = {}
        self._compiler: Compiler | None = None
        self._max_running = 1
        self._max_waiting = 0

    def run(self) -> None:
        """Serves until the socket closes."""
        self._selector.register(self._connection, selectors.EVENT_READ)
        try:
            while self._turn():
                pass
        finally:
            for job in self._running.values():
                _kill(job.process)

    def _turn(self) -> bool:
        for key, _ in self._selector.select(self._pause()):
            if key.fileobj is self._connection:
                data = self._connection.recv(2**20)
                if not data:
                    return False
                for message in self._frames.feed(data):
                    self._receive(json.loads(message))
            else:
                self._read(key.fd)
        self._end_slow()
        self._start_waiting()
        return True

    def _pause(self) -> float | None:
        """Returns how long nothing can be due."""
        if not self._running:
            return None
        limits = [job.started + self._limit(job) for job in self._running.values()]
        return max(0.0, min(limits) - time.monotonic())

    def _limit(self, job: Job) -> float:
        full = len(self._running) >= self._max_running
        return min(job.limit_s, MIN_TURN_S) if self._waiting and full else job.limit_s

    def _receive(self, message: dict[str, Any]) -> None:
        if "tokenizer_info" in message:
            self._max_running, self._max_waiting = message["max_running"], message["max_waiting"]
            self._compiler = Compiler(
                message["tokenizer_info"],
                any_whitespace=message["any_whitespace"],
                threads=message["threads"],
            )
            # Else a child that begins when a collection is due looks at all that was imported, for
            # 0.15 s that seem to be the grammar's.
            gc.collect()
            gc.freeze()
            self._send({"ready": True})
            return
        job = Job(len(message["text"]), **message)
        if len(self._waiting) >= self._max_waiting:
            self._reply(job, "busy", "many grammars are being compiled")
        else:
            heapq.heappush(self._waiting, job)

    def _start_waiting(self) -> None:
        while self._waiting and len(self._running) < self._max_running:
            job = heapq.heappop(self._waiting)
            reading, writing = os.pipe()
            job.started = time.monotonic()
            job.process = os.fork()
            if job.process == 0:
                self._be_child(job, writing)
            os.close(writing)
            self._running[reading] = job
            self._selector.register(reading, selectors.EVENT_READ)

    def _be_child(self, job: Job, writing: int) -> None:
        """Compiles and ends; never returns."""
        status = 1
        try:
            _confine()
            answer: dict[str, Any] = {"outcome": "ok", "reason": ""}
            try:
                if self._compiler is not None:
                    answer["seconds"] = self._compiler.examine(job.kind, job.text)
            except UnusableError as error:
                answer = {"outcome": "invalid", "reason": str(error)}
            except MemoryError:
                answer = {"outcome": "memory", "reason": ""}
            os.write(writing, json.dumps(answer).encode())
            status = 0
        finally:
            os._exit(status)

    def _read(self, descriptor: int) -> None:
        job = self._running[descriptor]
        data = os.read(descriptor, 2**16)
        job.answer += data
        if data:
            return
        self._forget(descriptor)
        _, status = os.waitpid(job.process, 0)
        if status == 0 and job.answer:
            answer = json.loads(job.answer)
            self._reply(job, **answer)
        else:
            self._reply(job, "crash", _describe(status))

    def _end_slow(self) -> None:
        now = time.monotonic()
        for descriptor, job in sorted(self._running.items(), key=lambda item: item[1].started):
            limit_s = self._limit(job)
            if now - job.started < limit_s:
                continue
            self._forget(descriptor)
            _kill(job.process)
            self._reply(job, "slow" if limit_s == job.limit_s else "turn", f"{limit_s:g}")

    def _forget(self, descriptor: int) -> None:
        self._selector.unregister(descriptor)
        os.close(descriptor)
        del self._running[descriptor]

    def _reply(self, job: Job, outcome: str, reason: str, seconds: float = 0.0) -> None:
        self._send({"number": job.number, "outcome": outcome, "reason": reason, "seconds": seconds})

    def _send(self, message: dict[str, Any]) -> None:
        self._connection.sendall(frame(json.dumps(message).encode()))


def _confine() -> None:
    """Bounds this process, which is about to compile."""
    _die_with_parent()
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        limit = pages * resource.getpagesize() + MAX_MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # A library that aborts says so here; the outcome is what counts.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)


def _die_with_parent() -> None:
    """Has the kernel end this process with its parent; elsewhere the closed socket does it."""
    parent = os.getppid()
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def _kill(process: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(process, 0)


def _describe(status: int) -> str:
    if os.WIFSIGNALED(status):
        return f"signal {signal.Signals(os.WTERMSIG(status)).name}"
    return f"exit code {os.WEXITSTATUS(status)}"


def main() -> None:
    """Runs until the replica closes the socket or dies."""
    _die_with_parent()
    os.nice(NICENESS)
    with socket.socket(fileno=int(sys.argv[1])) as connection, contextlib.suppress(OSError):
        Worker(connection).run()


if __name__ == "__main__":
    main()
