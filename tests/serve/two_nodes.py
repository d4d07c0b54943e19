"""Two Ray nodes on this machine, each in a network namespace of its own; knows no test.

A bridge joins the two and this machine, so that a test reaches both addresses. No packet leaves it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import psutil

from benchmarks.local_cluster import RAY, Host, LocalCluster
from truthgpt_serve.cluster.processes import (
    create_run_environment,
    create_run_id,
    end_run,
    find_run,
)

COMMAND_S = 180.0
_MAX_NUMBER = 100000
"""Of a process in names of links, which have at most 15 characters."""
_NAMES = {
    "netns": re.compile(r"^(tg(\d+)x\d+n\d)\b", re.MULTILINE),
    "link": re.compile(r"^\d+: (tg(\d+)x\d+b):", re.MULTILINE),
}
"""Of what a network has, in what `ip` lists, with the number of the process that made it."""


def can_make_networks() -> bool:
    """Returns whether this machine lets us make network namespaces."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    name = f"tgprobe{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False)
    if made.returncode:
        return False
    subprocess.run(["ip", "netns", "delete", name], check=True)
    return True


class Network:
    """A bridge, and a namespace at it for each of two hosts; use it as a context manager.

    Args:
        number: The third byte of the addresses, 10.213.<number>.0/24.
    """

    def __init__(self, number: int) -> None:
        self._number = number
        self._id = f"tg{os.getpid() % _MAX_NUMBER}x{number}"
        self._undo = ExitStack()

    @property
    def bridge_address(self) -> str:
        """This machine's own address in the network."""
        return self.address(254)

    def address(self, host: int) -> str:
        """Returns the address of a host."""
        return f"10.213.{self._number}.{host}"

    def prefix(self, host: int) -> tuple[str, ...]:
        """Returns the words in front of a command that shall run on a host."""
        return ("ip", "netns", "exec", self._namespace(host))

    def _namespace(self, host: int) -> str:
        return f"{self._id}n{host}"

    def __enter__(self) -> Self:
        """Makes the network."""
        bridge = f"{self._id}b"
        _remove_left()
        try:
            _ip("link", "add", bridge, "type", "bridge")
            self._undo.callback(_ip, "link", "delete", bridge)
            _ip("address", "add", f"{self.bridge_address}/24", "dev", bridge)
            _ip("link", "set", bridge, "up")
            for host in (1, 2):
                self._add_host(host, bridge)
        except BaseException:
            self._undo.close()
            raise
        return self

    def _add_host(self, host: int, bridge: str) -> None:
        name, outside = self._namespace(host), f"{self._id}v{host}"
        _ip("netns", "add", name)
        self._undo.callback(_ip, "netns", "delete", name)
        _ip("link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", name)
        _ip("link", "set", outside, "master", bridge, "up")
        _ip("-netns", name, "address", "add", f"{self.address(host)}/24", "dev", "eth0")
        for link in ("eth0", "lo"):
            _ip("-netns", name, "link", "set", link, "up")
        # As on any machine, where programs find out by it which address is theirs.
        _ip("-netns", name, "route", "add", "default", "via", self.bridge_address)

    def unplug(self, host: int) -> None:
        """Takes a host off the network without a word to those that talk to it."""
        _ip("link", "set", f"{self._id}v{host}", "down")

    def plug(self, host: int) -> None:
        """Puts it back."""
        _ip("link", "set", f"{self._id}v{host}", "up")

    def __exit__(self, *_: object) -> None:
        """Removes the network."""
        self._undo.close()


def _remove_left() -> None:
    """Removes the networks of runs that were killed: they have the addresses of this one."""
    alive = {pid % _MAX_NUMBER for pid in psutil.pids()}
    for kind, names in _NAMES.items():
        for name, number in names.findall(_ip(kind, "show")):
            if int(number) not in alive:
                _ip(kind, "delete", name)


def _ip(*arguments: str) -> str:
    done = subprocess.run(
        ["ip", *arguments], capture_output=True, text=True, timeout=COMMAND_S, check=False
    )
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


class WorkerNode:
    """A second node of a cluster, which can be lost and started again.

    Args:
        cluster: A started cluster.
        host: Where the node runs.
    """

    def __init__(self, cluster: LocalCluster, host: Host) -> None:
        self._cluster = cluster
        self._host = host
        self._run_id = ""
        # Short: Ray puts UNIX sockets into it.
        self._folder = Path(tempfile.mkdtemp(prefix="tg"))

    @property
    def url(self) -> str:
        """The service's address at this node."""
        return f"http://{self._host.address}:{self._cluster.port}"

    def start(self) -> None:
        """Starts the node and waits until it belongs to the cluster."""
        self._run_id = create_run_id()
        haproxy = self._folder / "haproxy"
        own = {
            name: str(haproxy / Path(value).name)
            for name, value in self._cluster.env.items()
            if name.startswith("RAY_SERVE_HAPROXY_") and value.startswith(str(self._cluster.folder))
        }
        env = {**self._cluster.env, **own, **create_run_environment(self._run_id)}
        address = f"{self._cluster.host.address}:{self._cluster.ray_port}"
        command = [*self._host.prefix, *RAY, "start", "--address", address]
        done = subprocess.run(
            [*command, *self._host.ray_arguments()],
            env=env,
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"the second node did not start:\n{done.stdout}\n{done.stderr}")

    def kill(self) -> None:
        """Ends every process of the node at once, as a power cut does."""
        for process in find_run(self._run_id):
            os.kill(process.pid, 9)
        end_run(self._run_id)

    def close(self) -> None:
        """Ends the node if it still runs."""
        if self._run_id:
            end_run(self._run_id)
        shutil.rmtree(self._folder, ignore_errors=True)


def nodes_of(cluster: LocalCluster, application: str) -> dict[str, str]:
    """Returns the node's address of each running replica of an application."""
    details: dict[str, Any] = cluster.details()["applications"][application]["deployments"]
    return {
        replica["replica_id"]: replica["node_ip"]
        for deployment in details.values()
        for replica in deployment["replicas"]
        if replica["state"] == "RUNNING"
    }
