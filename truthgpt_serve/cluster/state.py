"""What Ray Serve's answer says of the applications: which exist, their state and card.

The answer has a public schema (`ray.serve.schema.ServeInstanceDetails`); `controller` asks for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from truthgpt_serve.cluster.placement import describe_waiting, needed_by, waiting_replicas
from truthgpt_serve.cluster.start_errors import read_cause

Resources = Mapping[str, float]
"""Amounts by Ray's names."""

CARD_KEY = "card"
"""Key of a model's card in its deployment's `user_config`."""

_ALL_ADDRESSES = ("", "*", "0.0.0.0", "::")

_RECOVERING = "RECOVERING"
"""State of a replica that a new controller has not heard of yet: it has gone on meanwhile."""
_GIVEN_REQUESTS = ("RUNNING", "PENDING_MIGRATION", _RECOVERING)
"""States of replicas that Serve's proxies send requests to."""


@dataclass(frozen=True, slots=True)
class ApplicationState:
    """One application of this Serve instance.

    Attributes:
        name: Application name.
        route_prefix: Where it is mounted, or None while that is unknown.
        status: Serve's status: NOT_STARTED, DEPLOYING, RUNNING, UNHEALTHY, DEPLOY_FAILED, DELETING.
        message: Serve's explanation of the status.
        num_running_replicas: Replicas of all its deployments that are given requests.
        num_draining_replicas: Those that only finish the requests they have.
        waits_for: What replicas that have no node yet wait for, in words, or None.
        last_error: Why it does not run as it should, in one line, or None.
        replicas: Ids of the replicas that are given requests.
        card: What the application published about itself, or None.
        deployed_at_s: When it was deployed, seconds since the epoch.
    """

    name: str
    route_prefix: str | None
    status: str
    message: str
    num_running_replicas: int
    card: dict[str, Any] | None
    deployed_at_s: float
    num_draining_replicas: int = 0
    waits_for: str | None = None
    last_error: str | None = None
    replicas: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class ServeState:
    """All applications by name, and where Serve's proxies listen.

    Attributes:
        applications: By name.
        proxy_port: Port of the proxies, or None while it is unknown.
        proxy_host: Host at which a proxy's own node reaches it; an IPv6 address without brackets.
        node_hosts: Addresses of the nodes that have a proxy.
    """

    applications: dict[str, ApplicationState] = field(default_factory=dict)
    proxy_port: int | None = None
    proxy_host: str = "127.0.0.1"
    node_hosts: frozenset[str] = frozenset()


def parse_details(
    details: dict[str, Any],
    find_resources: Callable[[], tuple[Resources, Resources]] = lambda: ({}, {}),
) -> ServeState:
    """Turns `ServeInstanceDetails` (as JSON-like data) into a `ServeState`.

    Args:
        details: What Serve says.
        find_resources: Returns what the cluster has and what of it is free; called only when
            replicas wait.
    """
    find_resources = cache(find_resources)
    options = details.get("http_options") or {}
    return ServeState(
        applications={
            name: _application(name, value, find_resources)
            for name, value in details["applications"].items()
        },
        proxy_port=options.get("port"),
        proxy_host=_reachable_host(options.get("host") or ""),
        node_hosts=frozenset(
            str(proxy["node_ip"])
            for proxy in (details.get("proxies") or {}).values()
            if proxy.get("node_ip")
        ),
    )


def state_name(state: Any) -> str:
    """Returns Serve's name of a state, which is an enumeration's value or its text."""
    return str(getattr(state, "value", state))


def _reachable_host(listens_on: str) -> str:
    """Returns where a proxy that listens on this host is reached from its own node."""
    host = listens_on.strip("[]")
    return "127.0.0.1" if host in _ALL_ADDRESSES else host


def _application(
    name: str,
    details: dict[str, Any],
    find_resources: Callable[[], tuple[Resources, Resources]],
) -> ApplicationState:
    deployments = details["deployments"].values()
    card = None
    for deployment in deployments:
        user_config = (deployment.get("deployment_config") or {}).get("user_config")
        if isinstance(user_config, dict) and isinstance(user_config.get(CARD_KEY), dict):
            card = user_config[CARD_KEY]
    replicas = [replica for deployment in deployments for replica in deployment["replicas"]]
    states = [state_name(replica["state"]) for replica in replicas]
    configured = details.get("deployed_app_config") or {}
    return ApplicationState(
        name=name,
        route_prefix=details.get("route_prefix") or configured.get("route_prefix"),
        status=_status(state_name(details["status"]), states),
        message=details.get("message") or "",
        num_running_replicas=sum(state in _GIVEN_REQUESTS for state in states),
        card=card,
        deployed_at_s=float(details.get("last_deployed_time_s") or 0.0),
        num_draining_replicas=states.count("STOPPING"),
        waits_for=_waits_for(details, find_resources),
        last_error=_last_error(details),
        replicas=frozenset(
            str(replica.get("replica_id"))
            for replica, state in zip(replicas, states, strict=True)
            if state in _GIVEN_REQUESTS
        ),
    )


def _status(status: str, states: list[str]) -> str:
    """Returns the status of an application, without the moment in which a controller is new.

    It calls what it finds running DEPLOYING until each replica has answered it.
    """
    settled = _RECOVERING in states and all(state in _GIVEN_REQUESTS for state in states)
    return "RUNNING" if status == "DEPLOYING" and settled else status


def _waits_for(
    details: dict[str, Any], find_resources: Callable[[], tuple[Resources, Resources]]
) -> str | None:
    now_s = time.time()
    for deployment in details["deployments"].values():
        if number := waiting_replicas(deployment, now_s):
            return describe_waiting(number, needed_by(deployment), *find_resources())
    return None


def _last_error(details: dict[str, Any]) -> str | None:
    """Returns the cause of the first deployment that fails, else of the application."""
    if state_name(details["status"]) in ("RUNNING", "DELETING"):
        return None
    messages = [value.get("message") for value in details["deployments"].values()]
    for message in (*messages, details.get("message")):
        if message and (cause := read_cause(message)) is not None:
            return cause
    return None
