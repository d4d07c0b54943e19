"""Asks Ray and Serve's controller what runs where.

The one file that goes beyond Ray's public API: `serve.status()` leaves out deployment
configurations and the proxy's port, so the call beneath it is used.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from truthgpt_serve.cluster.haproxy.limits import SOCKET_NAME
from truthgpt_serve.cluster.state import Resources, ServeState, parse_details, state_name

_HAPROXY_FILE = "/tmp/haproxy-serve/haproxy.cfg"
"""Ray's default for the variable below."""
CALL_TIMEOUT_S = 5.0
_UNLISTED = ("DEPLOYING", "DEPLOY_FAILED")
"""States of applications of which Serve may list no deployment although some run."""


def fetch_serve_state() -> ServeState:
    """Asks the Serve controller; blocks for some 10 ms, so call it off the event loop.

    Raises:
        RuntimeError: Serve is not running, or Ray's interface moved.
    """
    import ray

    if not ray.is_initialized():  # else the call below would start a cluster of its own
        raise RuntimeError("Ray Serve is not running: this process belongs to no Ray cluster")
    from ray.exceptions import RayError

    client = _serve_client()
    try:
        details = client.get_serve_details()
        _add_former_deployments(client, details["applications"])
    except RayError as error:
        raise RuntimeError(f"Serve's controller does not answer: {error}") from error
    return parse_details(details, _cluster_resources)


def _add_former_deployments(client: Any, applications: dict[str, dict[str, Any]]) -> None:
    """Adds what still answers of applications that are built anew, or whose new build failed.

    Serve then lists no deployment of theirs, and goes on with the former ones.
    """
    import ray

    unlisted = [
        name
        for name, details in applications.items()
        if not details["deployments"] and state_name(details["status"]) in _UNLISTED
    ]
    if not unlisted:
        return
    replicas = ray.get(client._controller._all_running_replicas.remote(), timeout=CALL_TIMEOUT_S)
    for deployment, running in replicas.items():
        if deployment.app_name not in unlisted:
            continue
        try:
            info, _ = client.get_deployment_info(deployment.name, deployment.app_name)
        except KeyError:  # removed meanwhile
            continue
        applications[deployment.app_name]["deployments"][deployment.name] = {
            "deployment_config": {"user_config": info.deployment_config.user_config},
            "replicas": [
                {"replica_id": replica.replica_id.unique_id, "state": "RUNNING"}
                for replica in running
            ],
        }


def _serve_client() -> Any:
    """Returns Serve's own client of its controller. Raises RuntimeError."""
    try:
        from ray.serve.context import _get_global_client
    except ImportError as error:
        raise RuntimeError(
            "ray.serve.context._get_global_client is gone: adapt "
            "truthgpt_serve/cluster/controller.py to this version of Ray "
            "(2.60.0 is the one it was written for)"
        ) from error
    client = _get_global_client(raise_if_no_controller_running=False)
    if client is None:
        raise RuntimeError("Ray Serve is not running")
    return client


def fetch_serve_file() -> dict[str, Any]:
    """Returns what a Serve file has in common with what runs; blocks as `fetch_serve_state` does.

    Returns:
        `http_options` and `applications`, or nothing where Serve does not run or does not answer.
    """
    import ray
    from ray.exceptions import RayError

    if not ray.is_initialized():
        return {}
    try:
        details = _serve_client().get_serve_details()
    except (RayError, RuntimeError):
        return {}
    applications = [
        dict(value["deployed_app_config"])
        for value in details["applications"].values()
        if value.get("deployed_app_config")
    ]
    return {"http_options": details.get("http_options") or {}, "applications": applications}


def fetch_replica_addresses(application: str) -> dict[str, tuple[str, int]]:
    """Returns host and HTTP port of an application's running replicas by their names.

    Asks the Serve controller; blocks for some 10 ms, so call it off the event loop.

    Raises:
        RuntimeError: Serve is not running, or Ray's interface moved.
    """
    import ray
    from ray.exceptions import RayError

    client = _serve_client()
    try:
        groups = ray.get(
            client._controller.get_target_groups.remote(application, True), timeout=CALL_TIMEOUT_S
        )
    except (RayError, AttributeError) as error:
        raise RuntimeError(
            f"Serve's controller does not say where replicas are: {error}"
        ) from error
    return {
        target.name.rpartition("#")[2]: (target.ip, target.port)
        for group in groups
        if group.app_name == application and "http" in str(group.protocol).lower()
        for target in group.targets
    }


def _cluster_resources() -> tuple[Resources, Resources]:
    import ray

    return ray.cluster_resources(), ray.available_resources()


def worker_proxy_port() -> int | None:
    """Returns the port of this node's proxy if Ray was told another one for this node."""
    value = os.environ.get("RAY_SERVE_WORKER_PROXY_HTTP_PORT", "")
    return int(value) if value.isdigit() else None


def proxy_socket() -> Path | None:
    """Returns the socket at which this node's HAProxy takes the routers' requests.

    None where Ray's Python proxy serves; HAProxy itself may run without it.
    """
    import ray

    if os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") != "1":
        return None
    # As Ray does: a folder for each node, below the one that is configured.
    folder = Path(os.environ.get("RAY_SERVE_HAPROXY_CONFIG_FILE_LOC", _HAPROXY_FILE)).parent
    node_id: str = ray.get_runtime_context().get_node_id()
    return folder / node_id / SOCKET_NAME


def metrics_address() -> tuple[str, int] | None:
    """Returns host and port of this node's Prometheus exporter, or None; blocks for a few ms."""
    import ray

    node_id = ray.get_runtime_context().get_node_id()
    for node in ray.nodes():
        if node["NodeID"] == node_id and node.get("MetricsExportPort"):
            return node["NodeManagerAddress"], int(node["MetricsExportPort"])
    return None
