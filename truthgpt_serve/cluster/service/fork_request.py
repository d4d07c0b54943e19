"""How a worker program of Ray's asks for a copy of the loaded process in its place.

Both ends are programs of one user on one machine. This module imports the standard library only:
each worker imports it before Ray.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

GREETING = b"?"
"""What the server says to who has connected: only then is a request sent, which it will read."""
READY_SUFFIX = ".ready"
"""Of a file beside the server's socket, once it has been loaded."""
REFUSED = 0
"""The answer to who has to start by itself; else it is the copy's process id."""
GO = b"!"
"""What the program says to its copy, and ends: a copy that does not hear it ends instead."""
ANSWER_BYTES = 4
MAX_REQUEST_BYTES = 4 << 20
NOT_COMPARED = frozenset({"RAY_JOB_ID", "_", "SHLVL", "PWD", "OLDPWD"})
"""Variables that nothing reads while it is imported; in all others a copy has to be the same."""
_SIZE_BYTES = 4
_NUM_STREAMS = 3
_OOM_SCORE = Path("/proc/self/oom_score_adj")
_CREDENTIALS = struct.Struct("3i")


@dataclass(frozen=True, slots=True)
class ForkRequest:
    """What a process takes over from the program that asks for it.

    Attributes:
        arguments: The program's `sys.argv`.
        python: The interpreter that runs it.
        environment: Its variables.
        folder: Its working folder.
        oom_score: How readily the kernel ends it when memory is short, from -1000 to 1000.
    """

    arguments: list[str]
    python: str
    environment: dict[str, str]
    folder: str
    oom_score: int

    @classmethod
    def of_this_process(cls, arguments: Sequence[str]) -> ForkRequest:
        """Returns the request of the program that runs here."""
        score = int(_OOM_SCORE.read_text())
        return cls(list(arguments), sys.executable, dict(os.environ), os.getcwd(), score)

    def is_for(self, environment: Mapping[str, str], folder: str) -> bool:
        """Returns whether this process, which began with these, is what that one would be."""
        names = (self.environment.keys() | environment.keys()) - NOT_COMPARED
        same = all(self.environment.get(name) == environment.get(name) for name in names)
        return same and self.folder == folder and self.python == sys.executable

    def send(self, connection: socket.socket) -> None:
        """Sends it, with the standard streams of this process.

        Raises:
            ValueError: It is longer than `MAX_REQUEST_BYTES`.
        """
        data = json.dumps(asdict(self)).encode()
        if len(data) > MAX_REQUEST_BYTES:
            raise ValueError("the environment is too long")
        head = len(data).to_bytes(_SIZE_BYTES)
        socket.send_fds(connection, [head], range(_NUM_STREAMS))
        connection.sendall(data)

    def take_on(self) -> None:
        """Makes this process, a copy, what the program was that asked for it."""
        for name in NOT_COMPARED:
            if name in self.environment:
                os.environ[name] = self.environment[name]
            else:
                os.environ.pop(name, None)
        os.setpgid(0, 0)  # with a dead worker its raylet ends the worker's group
        with suppress(OSError):  # without rights it only goes up
            _OOM_SCORE.write_text(str(self.oom_score))


def require_own_user(connection: socket.socket) -> None:
    """Refuses who is at the other end, unless it is of this user.

    Raises:
        PermissionError: It is another user's.
    """
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, user, _ = _CREDENTIALS.unpack(data)
    if user != os.getuid():
        raise PermissionError(f"user {user} is at the other end")


def receive_request(connection: socket.socket) -> tuple[ForkRequest, list[int]]:
    """Returns a request and the standard streams that came with it.

    Raises:
        OSError: It did not come whole, or not in time.
        ValueError: It is none.
    """
    head, streams, _, _ = socket.recv_fds(connection, _SIZE_BYTES, _NUM_STREAMS)
    try:
        size = int.from_bytes(head)
        if len(head) != _SIZE_BYTES or size > MAX_REQUEST_BYTES or len(streams) != _NUM_STREAMS:
            raise ValueError("this is no request for a worker")
        with connection.makefile("rb") as file:
            data = file.read(size)
        if len(data) != size:
            raise ConnectionResetError("half a request")
        return ForkRequest(**json.loads(data)), streams
    except BaseException:
        for stream in streams:
            os.close(stream)
        raise


def to_answer(pid: int) -> bytes:
    """Returns the answer with a process id, or with `REFUSED`."""
    return pid.to_bytes(ANSWER_BYTES)
