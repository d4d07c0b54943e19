"""A process that has imported what Ray's workers need, and becomes each of them by a fork.

What it has imported is in memory once, and a worker starts in a moment. It starts no thread, opens
no connection and draws no random number, so that a copy of it is as good as a new process. It ends
with its raylet.
"""

from __future__ import annotations

import gc
import importlib
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress

from truthgpt_serve.cluster.service.fork_request import (
    GREETING,
    REFUSED,
    ForkRequest,
    receive_request,
    require_own_user,
    to_answer,
)

MODULES = (
    "ray._private.node",
    "fastapi",
    "uvicorn",
    "aiohttp",
    "grpc.aio",
    "jinja2",
    "opentelemetry.exporter.prometheus",
    "opentelemetry.sdk.metrics",
    "prometheus_client",
    "requests",
    "truthgpt_serve.router.app",
    "truthgpt_serve.server",
)
"""What most workers import, but for Ray Serve. It draws random numbers for its classes, and Ray's
generator of them, which names workers and objects too, would go on alike in all copies. NumPy not
either: it has as many threads as the variables say when it is imported, which Ray sets later."""
REQUEST_TIMEOUT_S = 5.0


def load() -> bool:
    """Imports what workers need, and takes it out of what garbage collection looks at.

    Returns:
        Whether a copy is as good as a new process: not when an import failed, or started a thread,
        which a copy would not have.
    """
    try:
        for name in MODULES:
            with suppress(ModuleNotFoundError):
                importlib.import_module(name)
    except Exception as error:
        sys.stderr.write(f"Ray's workers start by themselves: {error}\n")
        return False
    if len(os.listdir("/proc/self/task")) != 1:
        names = ", ".join(thread.name for thread in threading.enumerate())
        sys.stderr.write(f"Ray's workers start by themselves: threads run ({names})\n")
        return False
    if not _draws_anew():
        sys.stderr.write("Ray's workers start by themselves: an import drew a random number\n")
        return False
    gc.collect()
    gc.freeze()
    return True


def _draws_anew() -> bool:
    """Returns whether Ray names things differently in two copies of this process."""
    drawn = set()
    for _ in range(2):
        reader, writer = os.pipe()
        copy = os.fork()
        if copy == 0:
            try:
                ray = importlib.import_module("ray")
                os.write(writer, ray.WorkerID.from_random().binary())
            finally:
                os._exit(0)
        os.close(writer)
        with open(reader, "rb") as file:
            drawn.add(file.read())
        os.waitpid(copy, 0)
    return len(drawn) == 2 and b"" not in drawn


def run(listener: int, raylet: int) -> ForkRequest | None:
    """Imports what workers need and forks for whoever asks, until the raylet is gone.

    Args:
        listener: The file descriptor of the socket where they ask.
        raylet: Process id of the raylet.

    Returns:
        In a copy, what it is to become; None in the process that was called.
    """
    environment, folder = dict(os.environ), os.getcwd()
    with socket.socket(fileno=listener) as server:
        usable = load()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # copies that have ended leave nothing

        def is_same(request: ForkRequest) -> bool:
            return usable and request.is_for(environment, folder)

        return _serve(server, raylet, is_same)


def _serve(
    listener: socket.socket, raylet: int, is_same: Callable[[ForkRequest], bool]
) -> ForkRequest | None:
    watched = os.pidfd_open(raylet)
    while True:
        ready, _, _ = select.select([listener.fileno(), watched], [], [])
        if watched in ready:
            return None
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(REQUEST_TIMEOUT_S)
            try:
                request = _answer(connection, is_same)
            except (OSError, ValueError, TypeError) as error:
                sys.stderr.write(f"a worker could not be forked: {error}\n")
                continue
        if request is not None:
            listener.close()
            os.close(watched)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            request.take_on()
            return request


def _answer(
    connection: socket.socket, is_same: Callable[[ForkRequest], bool]
) -> ForkRequest | None:
    """Answers one request; returns it in the copy."""
    require_own_user(connection)
    connection.sendall(GREETING)
    request, streams = receive_request(connection)
    try:
        if not is_same(request):
            connection.sendall(to_answer(REFUSED))
            return None
        copy = os.fork()
        if copy == 0:
            for number, stream in enumerate(streams):
                os.dup2(stream, number)
            return request
        connection.sendall(to_answer(copy))
        return None
    finally:
        for stream in streams:
            os.close(stream)
