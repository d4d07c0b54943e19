"""Which sockets the processes of a run listen on, in whatever network namespace they are."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from truthgpt_serve.cluster.processes import find_run

LISTEN, UNCONNECTED, UNIX_LISTEN = "0A", "07", "00010000"
LOOPBACK = ("127.0.0.1", "::1", "::ffff:127.0.0.1")


@dataclass(frozen=True, order=True)
class Listener:
    """One socket that takes what others send.

    Attributes:
        kind: `tcp`, `udp` or `unix`.
        address: IP address, or the path of a UNIX socket; `@` begins an abstract one.
        port: 0 for UNIX sockets.
        title: The process, as `ps` shows it.
    """

    kind: str
    address: str
    port: int
    title: str

    @property
    def is_local(self) -> bool:
        """Whether no other machine reaches it."""
        return self.kind == "unix" or self.address in LOOPBACK


def find_listeners(run_id: str) -> list[Listener]:
    """Returns all that the processes of a run listen on."""
    found: set[Listener] = set()
    tables: dict[str, dict[str, tuple[str, str, int]]] = {}
    for process in find_run(run_id):
        with suppress(OSError):  # gone meanwhile
            # The tables are those of the network, which most of the processes share.
            network = os.readlink(f"/proc/{process.pid}/ns/net")
            if network not in tables:
                tables[network] = _listening(process.pid)
            own = tables[network].keys() & _sockets(process.pid)
            found |= {Listener(*tables[network][inode], process.command) for inode in own}
    return sorted(found)


def _listening(pid: int) -> dict[str, tuple[str, str, int]]:
    """Returns kind, address and port of what is listened on in a process's network, by inode."""
    found = {}
    for kind in ("tcp", "tcp6", "udp", "udp6"):
        state = LISTEN if kind.startswith("tcp") else UNCONNECTED
        for line in _table(pid, kind):
            if line[3] == state:
                found[line[9]] = (kind[:3], *_parse(line[1]))
    for line in _table(pid, "unix"):
        if line[3] == UNIX_LISTEN and len(line) > 7:
            found[line[6]] = ("unix", line[7], 0)
    return found


def _table(pid: int, name: str) -> list[list[str]]:
    path = Path(f"/proc/{pid}/net/{name}")
    return [line.split() for line in path.read_text().splitlines()[1:]] if path.exists() else []


def _sockets(pid: int) -> set[str]:
    inodes = set()
    for entry in os.listdir(f"/proc/{pid}/fd"):
        with suppress(OSError):
            target = os.readlink(f"/proc/{pid}/fd/{entry}")
            if target.startswith("socket:["):
                inodes.add(target[len("socket:[") : -1])
    return inodes


def _parse(text: str) -> tuple[str, int]:
    """Reads an address as the kernel writes it: words of four bytes in the machine's order."""
    digits, _, port = text.partition(":")
    data = b"".join(bytes.fromhex(digits[at : at + 8])[::-1] for at in range(0, len(digits), 8))
    family = socket.AF_INET if len(data) == 4 else socket.AF_INET6
    return socket.inet_ntop(family, data), int(port, 16)
