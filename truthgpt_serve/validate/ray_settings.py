"""Whether a configuration agrees with the environment that Ray starts with.

Covers the few of Ray Serve's variables that a Serve file must fit; imports no Ray.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping

from truthgpt_serve.cluster.environment_file import read_environment_file
from truthgpt_serve.config import Source
from truthgpt_serve.config.base import show_value
from truthgpt_serve.config.paths import config_dir
from truthgpt_serve.errors import Fault
from truthgpt_serve.hardware.plan import SHUTDOWN_MARGIN_S

RAY_ENV = "ray.env"
"""File in the configurations' folder that sets Ray's environment."""
HAPROXY_VARIABLE = "RAY_SERVE_ENABLE_HA_PROXY"
HARD_STOP_VARIABLE = "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S"
HARD_STOP_S = 120.0
"""Ray's own default of the variable above."""
_HOSTS_FOR_HAPROXY = ("127.0.0.1", "localhost", "0.0.0.0", "::")


class RaySettings:
    """Ray's environment as the service will have it: this shell's, else the file's.

    Args:
        environ: The environment. A variable that it has wins over `ray.env`, as in `make serve`.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._environ = environ
        self._path = config_dir(environ) / RAY_ENV
        self._file = read_environment_file(self._path) if self._path.is_file() else {}

    def get(self, name: str) -> str | None:
        """Returns the value of a variable, or None."""
        return self._environ.get(name, self._file.get(name))

    def place(self, name: str) -> str:
        """Says where a variable is set, for messages."""
        if name in self._environ:
            return "in the environment"
        return f"in {self._path}" if name in self._file else "by Ray's default"

    @property
    def haproxy(self) -> bool:
        """Whether HAProxy is Serve's proxy."""
        return self.get(HAPROXY_VARIABLE) == "1"

    def hard_stop_s(self) -> float | None:
        """Returns how long HAProxy lets requests run on after a change, or None if unknown."""
        if not self.haproxy:
            return None
        try:
            return float(self.get(HARD_STOP_VARIABLE) or HARD_STOP_S)
        except ValueError:
            return None  # Ray itself refuses to start with it


def check_request_time(seconds: float, source: Source, *path: str) -> list[Fault]:
    """Returns the fault of a request that may be longer than HAProxy lets it be.

    Every change of an application reloads HAProxy, which then cuts requests that are older than
    its hard stop, those of other applications too.

    Args:
        seconds: The longest request.
        source: Where `path` starts.
        path: The key that says so.
    """
    settings = RaySettings()
    hard_stop_s = settings.hard_stop_s()
    if hard_stop_s is None or seconds + SHUTDOWN_MARGIN_S <= hard_stop_s:
        return []
    message = (
        f"{seconds:g} is too long for {HARD_STOP_VARIABLE}={hard_stop_s:g} "
        f"{settings.place(HARD_STOP_VARIABLE)}: when any application changes, HAProxy cuts what "
        "runs longer"
    )
    enough_s = math.ceil(seconds + SHUTDOWN_MARGIN_S)
    fix = f"set {HARD_STOP_VARIABLE}={enough_s} before Ray starts, or lower this"
    return [Fault(source.at(*path), message, fix)]


def check_host(options: object, source: Source) -> list[Fault]:
    """Returns the fault of `http_options.host` that leaves the replicas out of HAProxy's reach.

    Ray's replicas listen on that host too, and HAProxy connects to those of its node at 127.0.0.1.
    """
    host = options.get("host") if isinstance(options, Mapping) else None
    if host is None or host in _HOSTS_FOR_HAPROXY or not RaySettings().haproxy:
        return []
    message = f"{show_value(host)} is out of reach for HAProxy, which uses 127.0.0.1 on its node"
    fix = "write 127.0.0.1 for this machine only, or 0.0.0.0 for all interfaces and a firewall"
    return [Fault(source.at("http_options", "host"), message, fix)]
