"""From a configuration to the resources, limits and timeouts of a Ray Serve deployment.

Imports no Ray and starts nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from truthgpt_serve.autoscaling.policy import LOOK_BACK_S, POLICY, SAMPLE_S
from truthgpt_serve.config.model import ModelConfig
from truthgpt_serve.contract import FamilySpec
from truthgpt_serve.hardware.resources import cpu_node_labels, resolve_gpus
from truthgpt_serve.queue_full import ray_backpressure

BATCHING_MAX_ONGOING_REQUESTS = 64
TARGET_SHARE = 0.7
"""Share of `max_ongoing_requests` that autoscaling aims at: below 1, so that a replica is added
before the present ones are full."""
UPSCALE_DELAY_S = 30
"""Default with `target_ongoing_requests`."""
SHUTDOWN_MARGIN_S = 10
"""Added to the longest request, for what a replica does after its last one."""
_ANY_OF_TYPE = 0.001
"""The amount by which Ray itself asks for a node's accelerator type."""


@dataclass(frozen=True, slots=True)
class ReplicaPlan:
    """What each replica takes and how many requests it is given.

    Attributes:
        gpus: GPUs per replica: 0, a fraction, or a whole number.
        cfg: The configuration as a nested dict, with `hardware.gpus` decided: what the replica is
            given, so that it never decides by its own host. Empty for the router.
        ray_actor_options: `num_cpus`, `num_gpus` and possibly `accelerator_type` of the actor.
        placement_group_bundles: One bundle for each GPU of an engine that spans several, else None.
        placement_group_strategy: Ray's name of how the bundles are placed, or None.
        placement_group_label_selector: Labels of the nodes for every bundle, or None.
        max_ongoing_requests: Requests in one replica at a time.
        max_queued_requests: Requests waiting in each proxy.
        num_replicas: Fixed number of replicas, or None when autoscaled.
        max_replicas_per_node: Replicas on one node at most, or None.
        autoscaling_config: Ray's autoscaling settings, or None.
        graceful_shutdown_timeout_s: Time that a replaced replica has to finish its requests.
        health_check_period_s: Time between health checks.
        health_check_timeout_s: Time for one health check.
        backpressure_config: How a request is answered that finds every queue full.
    """

    ray_actor_options: dict[str, Any]
    max_ongoing_requests: int
    max_queued_requests: int
    graceful_shutdown_timeout_s: float
    health_check_period_s: float
    health_check_timeout_s: float
    gpus: float = 0
    cfg: dict[str, Any] = field(default_factory=dict)
    num_replicas: int | None = 1
    max_replicas_per_node: int | None = None
    autoscaling_config: dict[str, Any] | None = None
    placement_group_bundles: list[dict[str, float]] | None = None
    placement_group_strategy: str | None = None
    placement_group_label_selector: list[dict[str, str]] | None = None
    backpressure_config: dict[str, Any] = field(default_factory=ray_backpressure)

    def deployment_options(self, *, has_queue: bool = False) -> dict[str, Any]:
        """Returns the keyword arguments for `serve.deployment(...).options(**options)`.

        Args:
            has_queue: Whether requests wait in the replica, not in Ray's queue in front of it: Ray
                then lets in all that it may hold, and as many more as may be refused at the same
                time. What comes in one turn of the event loop counts as queued there for a moment.
        """
        ongoing, queued = self.max_ongoing_requests, self.max_queued_requests
        if has_queue:
            queued += ongoing
            ongoing = 2 * queued
        options: dict[str, Any] = {
            "ray_actor_options": self.ray_actor_options,
            "max_ongoing_requests": ongoing,
            "max_queued_requests": queued,
            "backpressure_config": self.backpressure_config,
            "graceful_shutdown_timeout_s": self.graceful_shutdown_timeout_s,
            "health_check_period_s": self.health_check_period_s,
            "health_check_timeout_s": self.health_check_timeout_s,
        }
        if self.autoscaling_config is not None:
            options["autoscaling_config"] = self.autoscaling_config
        else:
            options["num_replicas"] = self.num_replicas
        if self.max_replicas_per_node is not None:
            options["max_replicas_per_node"] = self.max_replicas_per_node
        if self.placement_group_bundles is not None:
            options["placement_group_bundles"] = self.placement_group_bundles
            options["placement_group_strategy"] = self.placement_group_strategy
        if self.placement_group_label_selector is not None:
            options["placement_group_bundle_label_selector"] = self.placement_group_label_selector
        return options


def request_limits(
    config: ModelConfig, spec: FamilySpec, *, environ: Mapping[str, str] = os.environ
) -> tuple[int, int]:
    """Returns how many requests one replica works on, and how many more may wait.

    Where the configuration leaves it open the family says; one that does not is judged by its
    class, which imports it.

    Args:
        config: The configuration. `gpus: auto`, which is open only where there is no cluster, is
            decided by the environment.
        spec: The family.
        environ: The environment, for `gpus: auto`.

    Raises:
        ConfigError: See `resolve_gpus`.
    """
    serving = config.serving
    ongoing = serving.max_ongoing_requests
    if ongoing is None and spec.max_ongoing_requests is not None:
        gpus = resolve_gpus(config, spec, cluster_gpus=0, environ=environ)
        ongoing = max(1, spec.max_ongoing_requests(_with_gpus(config, gpus).to_cfg()))
    elif ongoing is None:
        cls = spec.load_class(config.task)
        several = any(callable(getattr(cls, name, None)) for name in ("infer_batch", "stream"))
        batch_size = serving.batching.max_batch_size or 1
        ongoing = max(BATCHING_MAX_ONGOING_REQUESTS, batch_size) if several else 1
    return ongoing, serving.max_queued_requests or 2 * ongoing


def _with_gpus(config: ModelConfig, gpus: float) -> ModelConfig:
    hardware = config.hardware.model_copy(update={"gpus": gpus})
    return config.model_copy(update={"hardware": hardware})


def plan_replica(
    config: ModelConfig,
    spec: FamilySpec,
    *,
    cluster_gpus: float = 0,
    environ: Mapping[str, str] = os.environ,
    limits: tuple[int, int] | None = None,
) -> ReplicaPlan:
    """Returns what the deployment of a model needs.

    Args:
        config: The model's configuration, already checked.
        spec: Its family.
        cluster_gpus: GPUs of the whole cluster, for `gpus: auto`.
        environ: The environment, for `gpus: auto`.
        limits: What `request_limits` would return, where the class must not be imported for it.

    Raises:
        ConfigError: See `resolve_gpus`.
    """
    gpus = resolve_gpus(config, spec, cluster_gpus=cluster_gpus, environ=environ)
    serving = config.serving
    config = _with_gpus(config, gpus)
    ongoing, queued = limits or request_limits(config, spec, environ=environ)
    spans = spec.tensor_parallel and gpus > 1
    autoscaling = _autoscaling(config, ongoing)
    return ReplicaPlan(
        gpus=gpus,
        cfg=config.to_cfg(),
        ray_actor_options=_actor_options(config, 0 if spans else gpus, spans, environ),
        placement_group_bundles=_bundles(config, int(gpus)) if spans else None,
        placement_group_strategy=_strategy(config) if spans else None,
        placement_group_label_selector=_bundle_labels(config) if spans else None,
        max_ongoing_requests=ongoing,
        max_queued_requests=queued,
        num_replicas=None if autoscaling else serving.num_replicas or 1,
        max_replicas_per_node=serving.max_replicas_per_node,
        autoscaling_config=autoscaling,
        graceful_shutdown_timeout_s=serving.max_request_s + SHUTDOWN_MARGIN_S,
        health_check_period_s=serving.health_check_period_s,
        health_check_timeout_s=serving.health_check_timeout_s,
    )


def _actor_options(
    config: ModelConfig, gpus: float, spans: bool, environ: Mapping[str, str]
) -> dict[str, Any]:
    options: dict[str, Any] = {"num_cpus": config.hardware.cpus, "num_gpus": gpus}
    if config.hardware.accelerator_type is not None and gpus > 0 and not spans:
        options["accelerator_type"] = config.hardware.accelerator_type
    if config.hardware.label_selector and not spans:
        options["label_selector"] = dict(config.hardware.label_selector)
    elif gpus == 0 and not spans and (labels := cpu_node_labels(environ)):
        options["label_selector"] = labels
    return options


def _strategy(config: ModelConfig) -> str:
    """One engine talks between its GPUs at every layer: on two nodes only where it must."""
    return "PACK" if config.hardware.span_nodes else "STRICT_PACK"


def _bundle_labels(config: ModelConfig) -> list[dict[str, str]] | None:
    """Returns the labels in Ray's form: one selector counts for all bundles."""
    return [dict(config.hardware.label_selector)] if config.hardware.label_selector else None


def _bundles(config: ModelConfig, gpus: int) -> list[dict[str, float]]:
    """Returns a bundle for each GPU; the actor lives in the first, which so has the CPUs."""
    bundle: dict[str, float] = {"GPU": 1}
    if config.hardware.accelerator_type is not None:
        bundle[f"accelerator_type:{config.hardware.accelerator_type}"] = _ANY_OF_TYPE
    first = {"CPU": config.hardware.cpus, **bundle} if config.hardware.cpus else dict(bundle)
    return [first, *(dict(bundle) for _ in range(gpus - 1))]


def _autoscaling(config: ModelConfig, max_ongoing: int) -> dict[str, Any] | None:
    section = config.serving.autoscaling
    if section is None:
        return None
    settings = section.model_dump(exclude_none=True)
    target_queue_s = settings.pop("target_queue_s", None)
    if target_queue_s is not None:
        return _scaling_on_work(settings, target_queue_s)
    settings.setdefault("upscale_delay_s", UPSCALE_DELAY_S)
    if not section.min_replicas:
        # Ray's 10 s pass before the first request is seen: the proxy's report when it comes has
        # only the counts of before.
        settings["metrics_interval_s"] = SAMPLE_S
    settings.setdefault("target_ongoing_requests", max(1.0, round(TARGET_SHARE * max_ongoing, 1)))
    return settings


def _scaling_on_work(settings: dict[str, Any], target_queue_s: float) -> dict[str, Any]:
    """Returns settings with our policy, which keeps the delays itself: Serve's own come after."""
    down_s = settings["downscale_delay_s"]
    kwargs = {
        "target_queue_s": target_queue_s,
        "upscale_delay_s": settings.get("upscale_delay_s", 0),
        "downscale_delay_s": down_s,
        "downscale_to_zero_delay_s": settings.pop("downscale_to_zero_delay_s", down_s),
    }
    return {
        **settings,
        "upscale_delay_s": 0,
        "downscale_delay_s": 0,
        "metrics_interval_s": SAMPLE_S,
        "look_back_period_s": LOOK_BACK_S,
        "policy": {"policy_function": POLICY, "policy_kwargs": kwargs},
    }
