"""A process that has imported what Ray's workers need, and becomes each of them by a fork.

What it has imported is in memory once, and a worker starts in a moment. It starts no thread, opens
no connection and draws no random number, so that a copy of it is as good as a new process. It ends
with its raylet.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
from collections.abc import Callable

from truthgpt_serve.cluster.service.fork_loading import load, renew
from truthgpt_serve.cluster.service.fork_request import (
    GREETING,
    REFUSED,
    ForkRequest,
    receive_request,
    require_own_user,
    to_answer,
)

REQUEST_TIMEOUT_S = 5.0


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
            renew()
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
