"""The limits of Ray's start that have no setting are longer; Ray itself is asked, in a process."""

from __future__ import annotations

import subprocess
import sys
import types
from typing import Any

import pytest

from truthgpt_serve.cluster.service import ray_limits
from truthgpt_serve.cluster.service.ray_idle import RayMovedError

PARAMS = """
from truthgpt_serve.cluster.service.ray_limits import AGENT_PORTS, START_LIMIT_S, lengthen_limits
lengthen_limits()
import inspect
import ray._private.node, ray._private.parameter, ray._private.worker, ray.scripts.scripts
from ray.serve._private import api, client
RayParams = ray._private.parameter.RayParams
node = RayParams()
ports = [getattr(node, name) for name in AGENT_PORTS]
assert all(isinstance(port, int) and port > 1023 for port in ports), ports
assert len(set(ports)) == len(ports)
node.update_pre_selected_port()
given = RayParams(metrics_agent_port=4321, dashboard_agent_listen_port=4322)
assert (given.metrics_agent_port, given.dashboard_agent_listen_port) == (4321, 4322)
connecting = RayParams(gcs_address="127.0.0.1:6379")
assert not connecting.runtime_env_agent_port and not connecting.metrics_agent_port
assert api.HTTP_PROXY_TIMEOUT == client.HTTP_PROXY_TIMEOUT == START_LIMIT_S
# Those who use them look them up where they were changed.
for module in (ray._private.worker, ray.scripts.scripts):
    assert "ray._private.parameter.RayParams(" in inspect.getsource(module), module
node_class = ray._private.node.Node
assert "ray._private.services.get_node(" in inspect.getsource(node_class.__init__)
assert "self.start_raylet(" in inspect.getsource(node_class.start_ray_processes)
for function in (api.serve_start, api.serve_start_async):
    assert "timeout=HTTP_PROXY_TIMEOUT" in inspect.getsource(function)
"""


def test_ray_takes_the_longer_limits() -> None:
    subprocess.run([sys.executable, "-c", PARAMS], check=True, timeout=120)


def test_a_release_without_them_is_named() -> None:
    with pytest.raises(RayMovedError, match=r"has no ray\.elsewhere\.get_node: "):
        ray_limits._part(types.ModuleType("ray.elsewhere"), "get_node")


def test_a_node_is_waited_for_while_its_raylet_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def get_node(*arguments: Any) -> str:
        calls.append(arguments)
        if len(calls) < 4:
            raise RuntimeError("not there yet")
        return "node"

    monkeypatch.setattr(ray_limits, "_POLL_S", 0.01)
    wait_for_node = ray_limits._patiently(get_node)
    with pytest.raises(RuntimeError, match="not there yet"):
        wait_for_node("address", "id")  # this process has no raylet
    monkeypatch.setattr(ray_limits, "_has_raylet", lambda: True)
    assert wait_for_node("address", "id") == "node"
    assert calls == [("address", "id")] * 4
