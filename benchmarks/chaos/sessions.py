"""Which process HAProxy has sent which client's request to, by its own list of sessions.

`show sess` and the `server` lines are described at
https://docs.haproxy.org/2.8/management.html#9.3 and https://docs.haproxy.org/2.8/configuration.html.
"""

from __future__ import annotations

import re
import socket
from contextlib import suppress
from pathlib import Path

from benchmarks.chaos.parts import KINDS
from truthgpt_serve.cluster.processes import read_arguments

TIMEOUT_S = 5.0
_SERVER = re.compile(r"^\s*server (\S+) \S+:(\d+) ", re.MULTILINE)
_SESSION = re.compile(r" src=[\d.]+:(\d+) .* srv=(\S+) ")


def clients_of(run_id: str, ports: set[int]) -> set[int]:
    """Returns the ports of the clients whose requests went to a server with one of these ports.

    Args:
        run_id: The service's run.
        ports: On which the server listens.
    """
    (haproxy,) = [kind for kind in KINDS if kind.name == "haproxy"]
    found: set[int] = set()
    for process in haproxy.find(run_id):
        arguments = read_arguments(process.pid)
        if "-f" not in arguments:
            continue
        file = Path(arguments[arguments.index("-f") + 1])
        with suppress(OSError):
            names = {name for name, port in _SERVER.findall(file.read_text()) if int(port) in ports}
            sessions = _SESSION.findall(_ask(file.with_name("admin.sock"), "show sess"))
            found |= {int(client) for client, name in sessions if name in names}
    return found


def _ask(path: Path, command: str) -> str:
    answer = b""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(TIMEOUT_S)
        connection.connect(str(path))
        connection.sendall(f"{command}\n".encode())
        while data := connection.recv(65536):
            answer += data
    return answer.decode()
