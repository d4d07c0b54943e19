"""Has a copy of the loaded process take this worker program's place, where there is one.

The first worker of a raylet starts that process. Whatever is in the way, the worker starts by
itself, as without it.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from truthgpt_serve.cluster.service.fork_request import (
    ANSWER_BYTES,
    GO,
    GREETING,
    READY_SUFFIX,
    REFUSED,
    ForkRequest,
    require_own_user,
)

FORKS_VARIABLE = "TRUTHGPT_FORK_WORKERS"
"""Whether workers are copies of one process that has imported what they need: `1`."""
FOLDER_VARIABLE = "RAY_TMPDIR"
RAYLET_VARIABLE = "RAY_RAYLET_PID"
SERVER_OPTION = "--fork-server"
LOAD_TIMEOUT_S = 120.0
"""How long a worker waits for the process to be loaded, before it starts by itself."""
READY_TIMEOUT_S = 10.0
"""How long it waits for one that has been loaded."""
SLOW_TIMEOUT_S = 1.0
"""How long it waits for one that was too slow for another worker, and may have stopped for good."""
FORK_TIMEOUT_S = 20.0
"""How long one that was greeted waits for its copy, which ends if nobody waits for it."""
SLOW_SUFFIX = ".slow"
"""Of a file beside the process's socket, after it was too slow for a worker."""
_BACKLOG = 128


def ask_for_copy(arguments: Sequence[str]) -> bool:
    """Returns whether a copy has taken this program's place, which then has to end.

    Args:
        arguments: The program's `sys.argv`.
    """
    folder = os.environ.get(FOLDER_VARIABLE)
    if os.environ.get(FORKS_VARIABLE) != "1" or not folder:
        return False
    raylet = os.getppid()
    if os.environ.get(RAYLET_VARIABLE) != str(raylet):  # it has died, or is out of sight
        return False
    path = Path(folder, f"workers-{raylet}.sock")
    slow = path.with_suffix(SLOW_SUFFIX)
    try:
        _start_server(path, raylet, arguments)
        is_copied = _ask(path, _patience_s(path), arguments)
    except ConnectionRefusedError:  # it has ended: the next worker starts another one
        for suffix in (SLOW_SUFFIX, READY_SUFFIX, path.suffix):
            path.with_suffix(suffix).unlink(missing_ok=True)
        return False
    except (OSError, ValueError) as error:
        if isinstance(error, TimeoutError):
            with suppress(OSError):  # a full disk
                slow.touch()
        sys.stderr.write(f"this worker starts by itself: {error}\n")
        return False
    with suppress(OSError):
        slow.unlink()
    return is_copied


def _patience_s(path: Path) -> float:
    if path.with_suffix(SLOW_SUFFIX).exists():
        return SLOW_TIMEOUT_S
    return READY_TIMEOUT_S if path.with_suffix(READY_SUFFIX).exists() else LOAD_TIMEOUT_S


def _ask(path: Path, patience_s: float, arguments: Sequence[str]) -> bool:
    """Returns whether there is a copy, which now goes on.

    Args:
        path: Where the process listens.
        patience_s: How long it may take to begin.
        arguments: The program's `sys.argv`.

    Raises:
        OSError: It has ended, or takes too long.
        ValueError: The request is too long.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(patience_s)
        connection.connect(str(path))
        require_own_user(connection)
        if connection.recv(len(GREETING)) != GREETING:
            return False
        connection.settimeout(FORK_TIMEOUT_S)
        ForkRequest.of_this_process(arguments).send(connection)
        if int.from_bytes(connection.recv(ANSWER_BYTES)) == REFUSED:
            return False
        connection.sendall(GO)
        return True


def _start_server(path: Path, raylet: int, arguments: Sequence[str]) -> None:
    """Starts the process for a raylet's workers, unless another worker has."""
    if path.exists():
        return
    own = path.with_suffix(f".{os.getpid()}")
    with socket.socket(socket.AF_UNIX) as listener:
        try:
            listener.bind(str(own))
            own.chmod(0o600)
            listener.listen(_BACKLOG)
            path.hardlink_to(own)  # at once, and by one of them only
        except FileExistsError:
            return
        finally:
            own.unlink(missing_ok=True)
        program, *rest = arguments
        # The worker's own arguments too: a copy writes its title over them.
        options = [SERVER_OPTION, str(listener.fileno()), str(raylet)]
        subprocess.Popen(
            [sys.executable, program, *options, *rest],
            pass_fds=[listener.fileno()],
            process_group=0,  # it outlives this worker, with whose group it would be ended
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
