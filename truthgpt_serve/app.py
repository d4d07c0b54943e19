"""The builders that a Serve file names: `truthgpt_serve.app:model`, `:router`, `:playground`.

They turn `args` into Serve applications; they start nothing and import no engine.
"""

# No `from __future__ import annotations`: Ray looks at the builders' annotations at run time.

import os
import sys
from collections.abc import Mapping
from typing import Any

import ray
from ray import serve
from ray.serve import Application

from truthgpt_serve.access.settings import Auth, check_listening, check_same, find_auth
from truthgpt_serve.checks import check_model, resolve_family
from truthgpt_serve.cluster.controller import fetch_serve_file
from truthgpt_serve.cluster.start_errors import to_cause
from truthgpt_serve.cluster.state import CARD_KEY
from truthgpt_serve.config import (
    load_model_args,
    load_model_auth,
    load_model_cors,
    load_router_args,
)
from truthgpt_serve.config.auth import AuthSection
from truthgpt_serve.config.load import load_playground_args
from truthgpt_serve.contract import FamilySpec
from truthgpt_serve.errors import ConfigError
from truthgpt_serve.hardware.plan import plan_replica
from truthgpt_serve.hardware.service_plan import plan_playground, plan_router
from truthgpt_serve.playground.application import Playground, require_gradio
from truthgpt_serve.replica.classes import ModelReplica, Router
from truthgpt_serve.router.room import FAIR_QUEUE

LIMITED_TASKS = ("text-generation", "embedding", "custom")
"""Tasks for which `serving.limits` has a meaning."""


def model(args: dict[str, Any]) -> Application:
    """Builds a model's application.

    Args:
        args: `{"config": path}` of a model's YAML file, or the file's keys themselves; and `cors`
            and `auth`.

    Raises:
        ConfigError: The configuration has faults; the message lists them all.
    """
    try:
        config = load_model_args(args, place="args")
        cors = load_model_cors(args, place="args")
        auth = _find_auth(load_model_auth(args, place="args"), "args")
        if faults := check_model(config):
            raise ConfigError(faults)
    except Exception as error:
        raise error from to_cause(error)  # above Ray's frames in the application's message
    spec = resolve_family(config)
    plan = plan_replica(config, spec, cluster_gpus=_cluster_gpus())
    has_keys = auth is not None and auth.keys_file is not None
    card = {
        "task": config.task,
        "family": spec.name,
        "run_name": config.run_name,
        "aliases": config.serving.aliases,
        "adapters": [adapter.name for adapter in config.serving.adapters],
        "affinity": find_affinity(plan.cfg, spec),
        "limits": {
            "max_ongoing_requests": plan.max_ongoing_requests,
            "max_queued_requests": plan.max_queued_requests,
            **({"queue": FAIR_QUEUE} if has_keys else {}),
            "max_request_s": config.serving.max_request_s,
            **(config.serving.limits.model_dump() if config.task in LIMITED_TASKS else {}),
        },
    }
    deploy = serve.deployment(
        name="ModelReplica",
        user_config={CARD_KEY: card},
        **plan.deployment_options(has_queue=True),
    )
    return deploy(serve.ingress()(ModelReplica)).bind(
        plan.cfg, cors.allow_origins, config.source.hidden.written, auth
    )


def find_affinity(cfg: Mapping[str, Any], spec: FamilySpec) -> str:
    """Returns what `serving.affinity` comes to: `session`, `prefix` or `none`.

    Args:
        cfg: The configuration of a model.
        spec: Its family.
    """
    affinity: str = cfg["serving"]["affinity"]
    if affinity != "auto":
        return affinity
    return "prefix" if spec.keeps_prefixes and spec.keeps_prefixes(cfg) else "session"


def router(args: dict[str, Any]) -> Application:
    """Builds the router's application.

    Args:
        args: The keys of `RouterConfig`.

    Raises:
        ConfigError: The configuration has faults; the message lists them all.
    """
    config = load_router_args(args, place="router: args")
    try:
        auth = _find_auth(config.auth, "router: args")
    except Exception as error:
        raise error from to_cause(error)
    haproxy = os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1"
    if not haproxy:
        sys.stderr.write(
            "TruthGPT Serve: Ray's environment is not set, so requests go through Ray's slower "
            'Python proxy; run `eval "$(truthgpt environment .run)"` first, or `make serve`\n'
        )
    plan = plan_router(config, haproxy=haproxy, num_nodes=_num_nodes())
    deploy = serve.deployment(name="Router", **plan.deployment_options())
    settings = {**config.model_dump(exclude={"auth"}), "num_replicas": plan.num_replicas}
    return deploy(serve.ingress()(Router)).bind(settings, auth)


def playground(args: dict[str, Any]) -> Application:
    """Builds the application of the playground, the pages at `/ui`.

    Args:
        args: The keys of `PlaygroundConfig`.

    Raises:
        ConfigError: The configuration has faults; the message lists them all.
    """
    config = load_playground_args(args, place="ui: args")
    try:
        require_gradio()
    except ConfigError as error:
        sys.stderr.write(f"TruthGPT Serve: on this machine {error}\n")
        # Its own may have it. If not, the start shows it; a visitor would wait for minutes.
        config = config.model_copy(update={"keep_s": None})
    deploy = serve.deployment(name="Playground", **plan_playground(config).deployment_options())
    return deploy(serve.ingress()(Playground)).bind(config.model_dump())


def _find_auth(section: AuthSection | None, place: str) -> Auth | None:
    """Returns who may use an application.

    Raises:
        ConfigError: There is no file with keys, nothing says who may use a service that others
            reach, or this application would ask for no keys and another one does.
    """
    auth = find_auth(section, f"{place}.auth.keys_file")
    running = fetch_serve_file()
    host = running.get("http_options", {}).get("host")
    faults = check_listening(auth, host, "http_options.host")
    faults += check_same(auth, running.get("applications", []), f"{place}.auth")
    if faults:
        raise ConfigError(faults)
    return auth


def _cluster_gpus() -> float:
    return float(ray.cluster_resources().get("GPU", 0)) if ray.is_initialized() else 0.0


def _num_nodes() -> int:
    return sum(node["Alive"] for node in ray.nodes()) if ray.is_initialized() else 1
