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
from pathlib import Path

from truthgpt_serve.cluster.service.fork_request import (
    ANSWER_BYTES,
    GREETING,
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
FORK_TIMEOUT_S = 600.0
"""How long one that was greeted waits, as long as Ray waits for it: its copy may be on its way."""
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
    try:
        _start_server(path, raylet, arguments)
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(LOAD_TIMEOUT_S)
            connection.connect(str(path))
            require_own_user(connection)
            if connection.recv(len(GREETING)) != GREETING:
                return False
            connection.settimeout(FORK_TIMEOUT_S)
            ForkRequest.of_this_process(arguments).send(connection)
            answer = connection.recv(ANSWER_BYTES)
    except ConnectionRefusedError:  # it has ended: the next worker starts another one
        path.unlink(missing_ok=True)
        return False
    except (OSError, ValueError) as error:
        sys.stderr.write(f"this worker starts by itself: {error}\n")
        return False
    return int.from_bytes(answer) != REFUSED


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
