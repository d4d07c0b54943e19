"""The two builders that a Serve file names: `truthgpt_serve.app:model` and `truthgpt_serve.app:router`.

They turn `args` into Serve applications; they start nothing and import no engine.
"""

# No `from __future__ import annotations`: Ray looks at the builders' annotations at run time.

import os
import sys
from typing import Any

import ray
from ray import serve
from ray.serve import Application

from truthgpt_serve.checks import check_model, resolve_family
from truthgpt_serve.config import ModelConfig, load_model_config, load_router_config
from truthgpt_serve.errors import ConfigError, Fault
from truthgpt_serve.replica import ModelReplica, Router
from truthgpt_serve.resources import plan_replica
from truthgpt_serve.serve_state import CARD_KEY


def model(args: dict[str, Any]) -> Application:
    """Builds a model's application.

    Args:
        args: `{"config": path}` of a model's YAML file, or the file's keys themselves.

    Raises:
        ConfigError: The configuration has faults; the message lists them all.
    """
    config, place = _read_model_args(args)
    faults = check_model(config, place=place)
    if faults:
        raise ConfigError(faults)
    spec = resolve_family(config)
    plan = plan_replica(config, spec, cluster_gpus=_cluster_gpus())
    card = {
        "task": config.task,
        "family": spec.name,
        "run_name": config.run_name,
        "adapters": [adapter.name for adapter in config.serving.adapters],
        "limits": {
            "max_ongoing_requests": plan.max_ongoing_requests,
            "max_queued_requests": plan.max_queued_requests,
            "max_request_s": config.serving.max_request_s,
        },
    }
    deployment = serve.deployment(serve.ingress()(ModelReplica))
    options = plan.deployment_options()
    return deployment.options(
        name="ModelReplica", user_config={CARD_KEY: card}, **options
    ).bind(config.to_cfg())


def router(args: dict[str, Any]) -> Application:
    """Builds the router's application.

    Args:
        args: The keys of `RouterConfig`.

    Raises:
        ConfigError: The configuration has faults; the message lists them all.
    """
    config = load_router_config(args, place="router: args")
    if os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") != "1":
        sys.stderr.write(
            "TruthGPT Serve: Ray's environment is not set, so requests go through Ray's slower Python "
            "proxy; run `set -a; . configs/ray.env` first, or `make serve`\n"
        )
    # The slack keeps a stream that began just before a shutdown from being cut by it.
    graceful_shutdown_timeout_s = config.request_timeout_s + 10
    return (
        serve.deployment(serve.ingress()(Router))
        .options(
            name="Router",
            num_replicas=config.num_replicas,
            max_ongoing_requests=config.max_ongoing_requests,
            max_queued_requests=config.max_queued_requests,
            backpressure_config={"status_code": 429, "retry_after_s": 1},
            ray_actor_options={"num_cpus": config.cpus},
            graceful_shutdown_timeout_s=graceful_shutdown_timeout_s,
        )
        .bind(config.model_dump())
    )


def _read_model_args(args: dict[str, Any]) -> tuple[ModelConfig, str]:
    if "config" not in args:
        return load_model_config(args, place="args"), "args"
    if len(args) > 1:
        others = ", ".join(sorted(set(args) - {"config"}))
        raise ConfigError(
            [Fault("args", f"`config` names a file, and {others} stand beside it", "write one or the other")]
        )
    return load_model_config(args["config"]), str(args["config"])


def _cluster_gpus() -> float:
    return float(ray.cluster_resources().get("GPU", 0)) if ray.is_initialized() else 0.0
