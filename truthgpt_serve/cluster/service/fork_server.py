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
from contextlib import suppress
from pathlib import Path

from truthgpt_serve.cluster.service.fork_loading import load, renew
from truthgpt_serve.cluster.service.fork_request import (
    GO,
    GREETING,
    READY_SUFFIX,
    REFUSED,
    ForkRequest,
    receive_request,
    require_own_user,
    to_answer,
)

REQUEST_TIMEOUT_S = 5.0
GO_TIMEOUT_S = 30.0
"""How long a copy waits for the program whose place it takes, which may have given up."""


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
        with suppress(OSError):  # a full disk
            Path(server.getsockname()).with_suffix(READY_SUFFIX).touch()
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
                request, streams = _receive(connection)
            except (OSError, ValueError, TypeError) as error:
                sys.stderr.write(f"a worker could not be forked: {error}\n")
                continue
            try:
                if _fork(connection, is_same(request)):
                    _become(request, streams, connection, [listener.detach(), watched])
                    return request
            finally:
                for stream in streams:
                    os.close(stream)


def _receive(connection: socket.socket) -> tuple[ForkRequest, list[int]]:
    require_own_user(connection)
    connection.sendall(GREETING)
    return receive_request(connection)


def _fork(connection: socket.socket, is_same: bool) -> bool:
    """Forks where a copy may take the other program's place; returns True in the copy."""
    try:
        if is_same:
            return os.fork() == 0
        connection.sendall(to_answer(REFUSED))
    except OSError as error:  # the program sees its connection closed
        sys.stderr.write(f"a worker could not be forked: {error}\n")
    return False


def _become(
    request: ForkRequest, streams: list[int], connection: socket.socket, files: list[int]
) -> None:
    """Makes this process, a copy, the program that asked for it, or ends it.

    Args:
        request: What it is to become.
        streams: The standard streams of the program.
        connection: To the program, which is told, and says whether it has waited for that.
        files: Descriptors that are the server's alone.
    """
    try:
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        for file in files:
            os.close(file)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        request.take_on()
        renew()
        connection.settimeout(GO_TIMEOUT_S)
        connection.sendall(to_answer(os.getpid()))
        if connection.recv(len(GO)) == GO:
            return
    except BaseException as error:  # whatever it is: it must not go on as a second server
        sys.stderr.write(f"a worker could not be forked: {error}\n")
        sys.stderr.flush()
    os._exit(1)
