"""The process that compiles grammars, and the socket to it, on the replica's event loop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from truthgpt_serve.errors import UnavailableError
from truthgpt_serve.grammar.frames import FrameReader, frame

logger = logging.getLogger(__name__)

PATIENCE_S = 120.0
"""Longest wait for an answer beyond the grammar's own time: others may be before it."""


class CompilingProcess:
    """The compiling process and the socket to it."""

    def __init__(self) -> None:
        self.closed = False
        self._numbers = 0
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._started: asyncio.Future[dict[str, Any]] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None

    async def open(self, settings: Mapping[str, Any]) -> None:
        """Starts the process and waits until it can compile."""
        ours, theirs = socket.socketpair()
        with theirs:
            # From this thread, which lives as long as the model: the process dies with it.
            self._process = subprocess.Popen(  # returns when the child has begun
                [sys.executable, "-m", "truthgpt_serve.grammar.worker", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={
                    **os.environ,
                    "OMP_NUM_THREADS": "1",
                    # Ray gives its workers places to import from that no variable names.
                    "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                },
            )
        reader, self._writer = await asyncio.open_connection(sock=ours)
        self._started = asyncio.get_running_loop().create_future()
        self._reading = asyncio.create_task(self._read(reader))
        self._send(settings)
        await self._started

    async def compile(self, kind: str, text: str, limit_s: float) -> dict[str, Any]:
        """Returns the process's answer for one grammar."""
        if self.closed:
            raise UnavailableError("the process that compiles grammars has ended", retry_after_s=2)
        self._numbers += 1
        number = self._numbers
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._answers[number] = answer
        self._send({"number": number, "kind": kind, "text": text, "limit_s": limit_s})
        try:
            async with asyncio.timeout(limit_s + PATIENCE_S):
                return await answer
        except TimeoutError:
            self.close()
            message = "the process that compiles grammars does not answer"
            raise UnavailableError(message, retry_after_s=2) from None

    def _send(self, message: Mapping[str, Any]) -> None:
        if self._writer is not None:
            self._writer.write(frame(json.dumps(message).encode()))

    async def _read(self, reader: asyncio.StreamReader) -> None:
        frames = FrameReader()
        try:
            while data := await reader.read(2**16):
                for content in frames.feed(data):
                    self._take(json.loads(content))
        except OSError:
            logger.debug("the socket of the compiling process broke", exc_info=True)
        finally:
            self.close()

    def _take(self, message: dict[str, Any]) -> None:
        if "ready" in message and self._started is not None:
            self._started.set_result(message)
        elif (answer := self._answers.pop(message.get("number", 0), None)) and not answer.done():
            answer.set_result(message)

    def close(self) -> None:
        """Ends the process; whoever waits for it gets an error."""
        self.closed = True
        if self._process is not None:
            self._process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(5)
        if self._writer is not None:
            self._writer.close()
        error = UnavailableError("the process that compiles grammars has ended", retry_after_s=2)
        waiting = [*self._answers.values(), *([self._started] if self._started else [])]
        for answer in waiting:
            if not answer.done():
                answer.set_exception(error)
        self._answers.clear()
