"""Ports of this machine: which are free, and which have a server."""

from __future__ import annotations

import contextlib
import random
import socket
import sys
import time
from collections.abc import Iterable

POLL_S = 0.05
PORTS = range(20000, 30000)
"""Below those that the system gives to outgoing connections, and Serve to replicas; above Ray's."""


def free_port() -> int:
    """Returns a port that is free now, and that no other call returns while this process lives.

    Raises:
        OSError: Every one of many that were tried is in use.
    """
    for port in random.SystemRandom().sample(PORTS, min(100, len(PORTS))):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            _claim(port)
            return port
    raise OSError(f"no free port from {PORTS.start} to {PORTS.stop - 1}")


def _claim(port: int) -> None:
    """Keeps a port from other calls, in this process and others, until this process ends.

    An abstract socket has the port's number in its name: the system frees it with the process, and
    a network namespace has its own. The port itself stays free for the server that shall have it.

    Raises:
        OSError: The port is claimed.
    """
    if sys.platform == "linux":
        with socket.socket(socket.AF_UNIX) as claim:
            claim.bind(f"\0truthgpt-port-{port}")
            claim.detach()


def busy_ports(host: str, ports: Iterable[int]) -> list[int]:
    """Returns those ports on which a server cannot listen now."""
    busy = []
    for port in ports:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            # As servers do: connections that are only fading away do not count.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
                probe.listen(1)
            except OSError:
                busy.append(port)
    return busy


def is_answered(port: int) -> bool:
    """Returns whether a server listens on this port of 127.0.0.1: also one that would share it."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False


def wait_for_ports(host: str, ports: Iterable[int], timeout_s: float) -> list[int]:
    """Waits until all ports are free; returns those that are not when the time is over."""
    deadline = time.monotonic() + timeout_s
    while (busy := busy_ports(host, ports)) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    return busy
