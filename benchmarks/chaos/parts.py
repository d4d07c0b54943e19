"""The kinds of processes that a service consists of, found among those of its own run."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import psutil

from truthgpt_serve.cluster.processes import Process, find_run, read_arguments
from truthgpt_serve.cluster.service.parts import PARTS, Part, Remedy


class Holds(Enum):
    """Which requests a process holds."""

    SOME = "those that were sent to it"
    ALL = "all"
    NONE = "none"


@dataclass(frozen=True)
class Kind:
    """One kind.

    Attributes:
        name: For the command line and the table.
        part: How it is found.
        holds: Which requests end with it.
    """

    name: str
    part: Part
    holds: Holds = Holds.NONE

    def find(self, run_id: str) -> list[Process]:
        """Returns its processes, the newest last."""
        found = [
            process
            for process in find_run(run_id)
            if self.part.is_run_by(read_arguments(process.pid))
        ]
        return sorted(found, key=lambda process: process.started)


def _own(name: str, mark: str, holds: Holds = Holds.NONE) -> Kind:
    return Kind(name, Part(name, (mark,), Remedy.WAIT), holds)


def _rays(name: str, part: str, holds: Holds = Holds.NONE) -> Kind:
    return Kind(name, next(each for each in PARTS if each.name == part), holds)


KINDS = (
    _own("replica", "ray::ServeReplica:words:", Holds.SOME),
    _own("router", "ray::ServeReplica:router:", Holds.SOME),
    _rays("controller", "Ray Serve's controller"),
    _rays("fallback-proxy", "Ray Serve's fallback proxy"),
    _own("usage", "ray::UsageKeeper"),
    _rays("dashboard", "Ray's dashboard"),
    _rays("log-monitor", "Ray's log monitor"),
    _rays("proxy-manager", "Ray Serve's proxy manager"),
    _own("haproxy", "/haproxy", Holds.ALL),
    _rays("dashboard-agent", "Ray's dashboard agent", Holds.ALL),
    _rays("raylet", "Ray's raylet", Holds.ALL),
    _rays("gcs", "Ray's GCS", Holds.ALL),
)
"""What takes the whole service along on one node comes last."""
ENDS_SERVICE = frozenset({"dashboard-agent", "raylet", "gcs"})


def listening_ports(pid: int) -> set[int]:
    """Returns the TCP ports on which a process listens."""
    return {
        connection.laddr.port
        for connection in psutil.Process(pid).net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
