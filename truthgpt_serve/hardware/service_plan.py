"""What the deployments of a service's own parts need: its router and its playground.

Imports no Ray and starts nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from truthgpt_serve.autoscaling.policy import SAMPLE_S
from truthgpt_serve.config.playground import PlaygroundConfig
from truthgpt_serve.config.router import RouterConfig
from truthgpt_serve.hardware.plan import SHUTDOWN_MARGIN_S, ReplicaPlan
from truthgpt_serve.hardware.resources import cpu_node_labels


def plan_router(
    config: RouterConfig,
    environ: Mapping[str, str] = os.environ,
    *,
    haproxy: bool = False,
    num_nodes: int = 1,
) -> ReplicaPlan:
    """Returns what the router's deployment needs.

    Args:
        config: The router's configuration.
        environ: See `cpu_node_labels`.
        haproxy: Whether HAProxy is Serve's proxy.
        num_nodes: Nodes of the cluster.
    """
    is_alone = num_nodes == 1 and not cpu_node_labels(environ)
    # On one machine requests for models go straight to them while the router is replaced.
    default = 1 if haproxy and config.direct and is_alone else 2
    return ReplicaPlan(
        ray_actor_options=_actor_options(config.cpus, environ),
        max_ongoing_requests=config.max_ongoing_requests,
        max_queued_requests=config.max_queued_requests,
        num_replicas=config.num_replicas or default,
        max_replicas_per_node=config.max_replicas_per_node,
        graceful_shutdown_timeout_s=config.request_timeout_s + SHUTDOWN_MARGIN_S,
        health_check_period_s=1,
        health_check_timeout_s=10,
    )


def plan_playground(
    config: PlaygroundConfig, environ: Mapping[str, str] = os.environ
) -> ReplicaPlan:
    """Returns what the playground's deployment needs: one replica, which keeps the open pages.

    There is none before the first visitor comes, nor once all pages have been closed for `keep_s`.
    """
    is_kept = config.keep_s is None
    return ReplicaPlan(
        ray_actor_options=_actor_options(config.cpus, environ),
        max_ongoing_requests=config.max_ongoing_requests,
        max_queued_requests=config.max_queued_requests,
        num_replicas=1 if is_kept else None,
        autoscaling_config=None if is_kept else _on_demand(config),
        graceful_shutdown_timeout_s=2,  # open pages never end their event streams
        health_check_period_s=10,
        health_check_timeout_s=30,
    )


def _on_demand(config: PlaygroundConfig) -> dict[str, Any]:
    return {
        "min_replicas": 0,
        "max_replicas": 1,
        "target_ongoing_requests": config.max_ongoing_requests,
        "upscale_delay_s": 0,
        "downscale_delay_s": config.keep_s,
        "downscale_to_zero_delay_s": config.keep_s,
        "metrics_interval_s": SAMPLE_S,  # so soon the first visitor is seen; Ray's value is 10
    }


def _actor_options(cpus: float, environ: Mapping[str, str]) -> dict[str, Any]:
    options: dict[str, Any] = {"num_cpus": cpus, "num_gpus": 0}
    labels = cpu_node_labels(environ)
    return {**options, "label_selector": labels} if labels else options
