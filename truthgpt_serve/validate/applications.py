"""The rules for this product's own applications in a Serve file: names, routes, who sets what.

The file is plain data here; the configurations of models are checked elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from truthgpt_serve.config.base import NAME_PATTERN, PATTERN_WORDS, show_value
from truthgpt_serve.config.model import ModelConfig
from truthgpt_serve.config.playground import PlaygroundConfig
from truthgpt_serve.config.router import RouterConfig
from truthgpt_serve.config.source import Source, dotted
from truthgpt_serve.errors import Fault
from truthgpt_serve.wording import nearest

APP_MODULE = "truthgpt_serve.app"
MODEL_IMPORT = f"{APP_MODULE}:model"
ROUTER_IMPORT = f"{APP_MODULE}:router"
PLAYGROUND_IMPORT = f"{APP_MODULE}:playground"
MODEL_DEPLOYMENT = "ModelReplica"
ROUTER_DEPLOYMENT = "Router"
PLAYGROUND_DEPLOYMENT = "Playground"
PLAYGROUND_ROUTE = "/ui"
RESERVED_NAMES = frozenset({"models", "v1", "v2", "ui"})
"""First segments of the router's own paths."""

# Which of our settings decide a setting of Serve's `deployments:`.
_MODEL_SETTINGS: dict[tuple[str, ...], tuple[tuple[str, ...], ...]] = {
    ("num_replicas",): (("serving", "num_replicas"), ("serving", "autoscaling")),
    ("autoscaling_config",): (("serving", "autoscaling"), ("serving", "num_replicas")),
    ("max_ongoing_requests",): (("serving", "max_ongoing_requests"),),
    ("max_queued_requests",): (("serving", "max_queued_requests"),),
    ("graceful_shutdown_timeout_s",): (("serving", "max_request_s"),),
    ("health_check_period_s",): (("serving", "health_check_period_s"),),
    ("health_check_timeout_s",): (("serving", "health_check_timeout_s"),),
    ("max_replicas_per_node",): (("serving", "max_replicas_per_node"),),
    ("placement_group_bundles",): (("hardware", "gpus"),),
    ("placement_group_strategy",): (("hardware", "span_nodes"),),
    ("placement_group_bundle_label_selector",): (("hardware", "label_selector"),),
    ("ray_actor_options", "label_selector"): (("hardware", "label_selector"),),
    ("ray_actor_options", "num_cpus"): (("hardware", "cpus"),),
    ("ray_actor_options", "num_gpus"): (("hardware", "gpus"),),
    ("ray_actor_options", "accelerator_type"): (("hardware", "accelerator_type"),),
}
_ROUTER_SETTINGS: dict[tuple[str, ...], tuple[tuple[str, ...], ...]] = {
    ("num_replicas",): (("num_replicas",),),
    ("max_replicas_per_node",): (("max_replicas_per_node",),),
    ("autoscaling_config",): (("num_replicas",),),
    ("max_ongoing_requests",): (("max_ongoing_requests",),),
    ("max_queued_requests",): (("max_queued_requests",),),
    ("graceful_shutdown_timeout_s",): (("request_timeout_s",),),
    ("ray_actor_options", "num_cpus"): (("cpus",),),
}

_PLAYGROUND_SETTINGS: dict[tuple[str, ...], tuple[tuple[str, ...], ...]] = {
    ("max_ongoing_requests",): (("max_ongoing_requests",),),
    ("max_queued_requests",): (("max_queued_requests",),),
    ("ray_actor_options", "num_cpus"): (("cpus",),),
}
_DEPLOYMENTS: dict[type[BaseModel], tuple[str, dict[tuple[str, ...], Any]]] = {
    ModelConfig: (MODEL_DEPLOYMENT, _MODEL_SETTINGS),
    RouterConfig: (ROUTER_DEPLOYMENT, _ROUTER_SETTINGS),
    PlaygroundConfig: (PLAYGROUND_DEPLOYMENT, _PLAYGROUND_SETTINGS),
}


def import_target(import_path: Any) -> str | None:
    """Returns an import path as `module:attribute`; Ray allows a dot for the colon."""
    if not isinstance(import_path, str):
        return None
    if ":" in import_path:
        return import_path
    module, _, attribute = import_path.rpartition(".")
    return f"{module}:{attribute}"


def check_import_path(target: str | None, source: Source) -> list[Fault]:
    """Returns the fault of naming a builder that this package does not have."""
    module = (target or "").partition(":")[0]
    ours = (MODEL_IMPORT, ROUTER_IMPORT, PLAYGROUND_IMPORT)
    if target is None or target in ours or module != APP_MODULE:
        return []
    near = nearest(target, ours)
    fix = f"did you mean {near}?" if near else f"write {' or '.join(ours)}"
    return [Fault(source.at("import_path"), f"{target!r} does not exist", fix)]


def check_model_name(application: dict[str, Any], source: Source) -> Iterator[Fault]:
    """Yields the faults of a model's name and of its route."""
    name = application.get("name")
    if name is None:
        yield Fault(source.at("name"), "is required", "it is the model name that clients send")
        return
    if not isinstance(name, str):
        return  # Ray's schema says so
    if name in RESERVED_NAMES:
        message = f"{name!r} is a path of the router"
        yield Fault(source.at("name"), message, "give the model another name")
    elif "/" in name:
        message = f"{name!r} contains a slash, but is one segment of a path"
        yield Fault(source.at("name"), message, f"write {name.replace('/', '-').strip('-')}")
    elif not re.match(NAME_PATTERN, name):
        message = f"{name!r} is not usable here"
        yield Fault(source.at("name"), message, PATTERN_WORDS[NAME_PATTERN])
    route = application.get("route_prefix", "/")
    if route != f"/models/{name}":
        message = f"{route!r} is not the route of model {name!r}"
        yield Fault(source.at("route_prefix"), message, f"write /models/{name}")


def check_router_place(application: dict[str, Any], source: Source) -> list[Fault]:
    """Returns the fault of a router that is not at the root."""
    route = application.get("route_prefix", "/")
    if route == "/":
        return []
    return [Fault(source.at("route_prefix"), f"{route!r} is not the router's route", "write /")]


def check_playground_place(application: dict[str, Any], source: Source) -> Iterator[Fault]:
    """Yields the faults of a playground elsewhere than at `/ui`, or with several replicas."""
    route = application.get("route_prefix", "/")
    if route != PLAYGROUND_ROUTE:
        message = f"{route!r} is not the playground's route"
        yield Fault(source.at("route_prefix"), message, f"write {PLAYGROUND_ROUTE}")
    deployments = application.get("deployments")
    for index, deployment in enumerate(deployments if isinstance(deployments, list) else []):
        for key in ("num_replicas", "autoscaling_config"):
            value = deployment.get(key) if isinstance(deployment, dict) else None
            if value not in (None, 1):
                place = source.at("deployments", index, key)
                why = "the playground has one replica, which keeps what open pages have"
                yield Fault(place, f"is {show_value(value)}, and {why}", "remove it")


def check_overrides(
    application: dict[str, Any],
    source: Source,
    config: ModelConfig | RouterConfig | PlaygroundConfig,
) -> Iterator[Fault]:
    """Yields what stands under Serve's `deployments:` and must not.

    That is a deployment that does not exist, `user_config`, and settings that the configuration
    gives too.
    """
    expected, settings = _DEPLOYMENTS[type(config)]
    where = config.source if isinstance(config, ModelConfig) else source.under("args")
    deployments = application.get("deployments", [])
    for index, deployment in enumerate(deployments if isinstance(deployments, list) else []):
        if not isinstance(deployment, dict):
            continue
        at = source.under("deployments", index)
        name = deployment.get("name")
        if isinstance(name, str) and name != expected:
            message = f"this application has no deployment {name!r}"
            yield Fault(at.at("name"), message, f"write {expected}")
        if deployment.get("user_config") is not None:
            message = "belongs to the product, which keeps the model's card there"
            yield Fault(at.at("user_config"), message, "remove it")
        for theirs, ours in settings.items():
            given = next((path for path in ours if _is_set(config, path)), None)
            if given is not None and _has(deployment, theirs):
                place = at.at(*theirs)
                message = f"is also given at {where.at(*given)}"
                fix = f"keep {dotted(given)} and remove this"
                yield Fault(place, message, fix)


def find_deployment(application: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    """Returns an application's entry of this name under `deployments:`, or None."""
    deployments = application.get("deployments")
    for deployment in deployments if isinstance(deployments, list) else []:
        if isinstance(deployment, dict) and deployment.get("name") == name:
            return deployment
    return None


def _has(data: Any, path: tuple[str, ...]) -> bool:
    for key in path:
        data = data.get(key) if isinstance(data, dict) else None
    return data is not None


def _is_set(config: BaseModel, path: tuple[str, ...]) -> bool:
    here: Any = config
    for key in path:
        if not isinstance(here, BaseModel) or key not in here.model_fields_set:
            return False
        here = getattr(here, key)
    return here is not None
