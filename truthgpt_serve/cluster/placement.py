"""Describes what replicas that Ray has not placed yet are waiting for.

Reads what Serve says of a deployment, as JSON-like data.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PATIENCE_S = 5.0
"""How long a replica may be without a node before that is worth a word."""
_WAITING = "STARTING"
_TYPE_MARK = "accelerator_type:"


def waiting_replicas(deployment: Mapping[str, Any], now_s: float) -> int:
    """Returns how many replicas of a deployment have had no node for some seconds."""
    return sum(
        str(getattr(replica["state"], "value", replica["state"])) == _WAITING
        and replica.get("node_id") is None
        and now_s - float(replica.get("start_time_s") or now_s) > PATIENCE_S
        for replica in deployment["replicas"]
    )


def needed_by(deployment: Mapping[str, Any]) -> dict[str, float]:
    """Returns what one replica of a deployment takes altogether, by Ray's names."""
    config = deployment.get("deployment_config") or {}
    options = config.get("ray_actor_options") or {}
    own = {
        "CPU": options.get("num_cpus"),
        "GPU": options.get("num_gpus"),
        "memory": options.get("memory"),
        **(options.get("resources") or {}),
    }
    total: dict[str, float] = {}
    for bundle in config.get("placement_group_bundles") or [own]:
        for name, amount in bundle.items():
            if amount:
                total[name] = total.get(name, 0.0) + float(amount)
    if options.get("accelerator_type"):
        total[f"{_TYPE_MARK}{options['accelerator_type']}"] = 0.001
    return total


def describe_waiting(
    number: int, needed: Mapping[str, float], total: Mapping[str, float], free: Mapping[str, float]
) -> str:
    """Returns what replicas wait for.

    Args:
        number: How many.
        needed: What each of them takes.
        total: What the cluster has.
        free: What of that is free.
    """
    who = "1 replica waits" if number == 1 else f"{number} replicas wait"
    short = {name: amount for name, amount in needed.items() if amount > free.get(name, 0.0)}
    parts = [_describe(name, amount, total, free) for name, amount in (short or needed).items()]
    if not parts:
        return f"{who} for a node"
    return f"{who} for resources: each needs {', '.join(parts)}"


def _describe(
    name: str, amount: float, total: Mapping[str, float], free: Mapping[str, float]
) -> str:
    if name.startswith(_TYPE_MARK):
        has = "has one" if total.get(name) else "has none"
        return f"a GPU of type {name.removeprefix(_TYPE_MARK)} (the cluster {has})"
    present = f"the cluster has {total.get(name, 0.0):.12g}, {free.get(name, 0.0):.12g} free"
    return f"{amount:.12g} {name} ({present})"
