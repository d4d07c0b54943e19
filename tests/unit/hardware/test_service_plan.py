"""Ray Serve's options for the router and the playground, checked by Ray's own classes."""

from __future__ import annotations

from typing import Any

import pytest
from ray import serve
from ray.serve.config import AutoscalingConfig

from truthgpt_serve.config import load_router_config
from truthgpt_serve.config.playground import PlaygroundConfig
from truthgpt_serve.hardware.service_plan import plan_playground, plan_router

CPU_NODES = {"TRUTHGPT_CPU_NODE_LABEL": "truthgpt.io/gpu=none"}


class Anything:
    """What is deployed."""


def accept(options: dict[str, Any]) -> Any:
    """Returns the deployment that Ray Serve makes of the options, without starting anything."""
    deployment: Any = serve.deployment(Anything)
    return deployment.options(**options)


def test_router_and_playground_are_kept_on_cpu_nodes() -> None:
    router = load_router_config({})
    for replica in (
        plan_router(router, CPU_NODES),
        plan_playground(PlaygroundConfig(), CPU_NODES),
    ):
        assert replica.ray_actor_options["label_selector"] == {"truthgpt.io/gpu": "none"}
        accept(replica.deployment_options())
    assert "label_selector" not in plan_router(router, {}).ray_actor_options


def test_router() -> None:
    config = load_router_config({"request_timeout_s": 100, "max_replicas_per_node": 1})
    options = plan_router(config, {}).deployment_options()
    deployment = accept(options)
    assert options["graceful_shutdown_timeout_s"] > 100
    assert deployment.ray_actor_options["num_cpus"] == 0
    assert deployment._replica_config.max_replicas_per_node == 1


@pytest.mark.parametrize(
    ("given", "environ", "haproxy", "num_nodes", "number"),
    [
        ({}, {}, True, 1, 1),
        ({}, {}, True, 2, 2),
        ({}, CPU_NODES, True, 1, 2),  # its nodes may come later
        ({}, {}, False, 1, 2),
        ({"direct": False}, {}, True, 1, 2),
        ({"num_replicas": 1}, {}, False, 2, 1),
        ({"num_replicas": 5}, {}, True, 1, 5),
    ],
)
def test_a_second_router_is_where_models_are_not_reached_without_one(
    given: dict[str, Any], environ: dict[str, str], haproxy: bool, num_nodes: int, number: int
) -> None:
    config = load_router_config(given)
    plan = plan_router(config, environ, haproxy=haproxy, num_nodes=num_nodes)
    assert accept(plan.deployment_options()).num_replicas == number


def test_the_playground_starts_when_it_is_asked_for() -> None:
    options = plan_playground(PlaygroundConfig(keep_s=60)).deployment_options()
    accept(options)
    scaling = AutoscalingConfig(**options["autoscaling_config"])
    assert (scaling.min_replicas, scaling.max_replicas) == (0, 1)
    assert scaling.downscale_to_zero_delay_s == 60
    kept = plan_playground(PlaygroundConfig(keep_s=None)).deployment_options()
    assert kept["num_replicas"] == 1
    assert "autoscaling_config" not in kept
