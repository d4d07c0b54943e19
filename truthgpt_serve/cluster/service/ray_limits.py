"""Lengthens the limits of Ray's start that have no setting. The one file that changes them.

- The raylet waits 15 s for each of its agents to write its port into a file. Here the ports are
  chosen and written before it starts; the agents take them when they are up.
- A node waits 30 s for its raylet.
- Serve waits 60 s for its proxies.

On a busy machine each of them ends the whole start. Run as a program it is Ray's own command line
with these limits, and as light as `ray_idle` makes it:
`python -m truthgpt_serve.cluster.service.ray_limits start --head`.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any

import psutil

from truthgpt_serve.cluster.ports import free_port
from truthgpt_serve.cluster.processes import read_arguments
from truthgpt_serve.cluster.service.ray_idle import RayMovedError, lighten_ray
from truthgpt_serve.cluster.service.ray_worker import change_imports

START_LIMIT_S = 600.0
"""How long each of these steps may take; what fails earlier says so earlier."""
AGENT_PORTS = {
    "metrics_agent_port": "METRICS_AGENT_PORT_NAME",
    "metrics_export_port": "METRICS_EXPORT_PORT_NAME",
    "runtime_env_agent_port": "RUNTIME_ENV_AGENT_PORT_NAME",
    "dashboard_agent_listen_port": "DASHBOARD_AGENT_LISTEN_PORT_NAME",
}
"""Ray's parameters of a node by which the agents' ports are given, and what names their files."""
_POLL_S = 0.5


def lengthen_limits() -> None:
    """Changes the limits in this process; call it before Ray and Serve start.

    Raises:
        RayMovedError: This release of Ray has other parts.
    """
    lengthen_node_limits()
    for name in ("api", "client"):
        module = importlib.import_module(f"ray.serve._private.{name}")
        _part(module, "HTTP_PROXY_TIMEOUT")
        _replace(module, "HTTP_PROXY_TIMEOUT", START_LIMIT_S)


@cache
def lengthen_node_limits() -> None:
    """Changes those of a node in this process, once; call it before Ray starts.

    Raises:
        RayMovedError: This release of Ray has other parts.
    """
    parameter = importlib.import_module("ray._private.parameter")
    services = importlib.import_module("ray._private.services")
    node = _part(importlib.import_module("ray._private.node"), "Node")
    _replace(node, "start_raylet", _after_ports_are_written(_part(node, "start_raylet")))
    _replace(parameter, "RayParams", _with_agent_ports(_part(parameter, "RayParams")))
    _replace(services, "get_node", _patiently(_part(services, "get_node")))


def _part(module: ModuleType | type[Any], name: str) -> Any:
    try:
        return getattr(module, name)
    except AttributeError:
        import ray

        raise RayMovedError(
            f"Ray {ray.__version__} has no {module.__name__}.{name}: the limits of its start are "
            f"somewhere else now, see {__file__}"
        ) from None


def _replace(module: ModuleType | type[Any], name: str, value: Any) -> None:
    setattr(module, name, value)


def _with_agent_ports(params: type[Any]) -> type[Any]:
    """Returns Ray's parameters of a node with a port for every agent that has none."""

    class ParamsWithPorts(params):  # type: ignore[misc]  # a class of Ray's, known at run time
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            if self.gcs_address or self.redis_address:
                return  # it only connects
            for name in AGENT_PORTS:
                if not hasattr(self, name):
                    raise RayMovedError(f"Ray's parameters of a node have no {name}")
                if not getattr(self, name):
                    setattr(self, name, free_port())

    return ParamsWithPorts


def _after_ports_are_written(start_raylet: Callable[..., None]) -> Callable[..., None]:
    """Returns `start_raylet` of a node that writes the agents' ports first."""
    raylet = importlib.import_module("ray._raylet")
    persist_port = _part(raylet, "persist_port")
    names = {key: _part(raylet, name) for key, name in AGENT_PORTS.items()}

    def write_ports_and_start(self: Any, *args: Any, **kwargs: Any) -> None:
        for key, name in names.items():
            port = getattr(self._ray_params, key)
            if port:
                persist_port(self._session_dir, self._node_id, name, port)
        start_raylet(self, *args, **kwargs)

    return write_ports_and_start


def _patiently(get_node: Callable[..., Any]) -> Callable[..., Any]:
    """Returns `get_node` with more patience: it raises while the node is not registered."""

    def wait_for_node(*args: Any, **kwargs: Any) -> Any:
        deadline = time.monotonic() + START_LIMIT_S
        while True:
            try:
                return get_node(*args, **kwargs)
            except RuntimeError:
                if time.monotonic() > deadline or not _has_raylet():
                    raise
            time.sleep(_POLL_S)

    return wait_for_node


def _has_raylet() -> bool:
    found = [read_arguments(child.pid) for child in psutil.Process().children()]
    return any(argument.endswith("/raylet/raylet") for each in found for argument in each[:3])


def main() -> None:
    """Ray's command line."""
    change_imports()
    lengthen_limits()
    lighten_ray()
    command = importlib.import_module("ray.scripts.scripts")
    sys.argv[0] = "ray"
    command.main()


if __name__ == "__main__":
    main()
