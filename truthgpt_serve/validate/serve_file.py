"""Checks a Serve file against Ray Serve's own schema, and refuses the keys that Ray would ignore.

Any Ray Serve file can be checked.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from ray.serve.config import AutoscalingConfig, GangSchedulingConfig, RequestRouterConfig
from ray.serve.schema import DeploymentSchema, ServeApplicationSchema, ServeDeploySchema

from truthgpt_serve.config.base import show_value
from truthgpt_serve.config.faults import (
    NamePath,
    faults_of,
    field_names,
    known_paths,
    models_in,
    unknown_key,
)
from truthgpt_serve.config.source import KeyPath, Source
from truthgpt_serve.errors import Fault

MIN_PORT, MAX_PORT = 1, 65535

# Ray accepts any mapping for these and looks inside only while it deploys.
_DEPLOYMENT_SECTIONS: dict[str, type[BaseModel]] = {
    "autoscaling_config": AutoscalingConfig,
    "request_router_config": RequestRouterConfig,
    "gang_scheduling_config": GangSchedulingConfig,
}


def check_serve_schema(data: Mapping[str, Any], source: Source) -> list[Fault]:
    """Returns every fault of a Serve file by Ray's schema, and every key that the schema lacks."""
    known = known_paths(ServeDeploySchema)
    faults = list(_unknown_keys(ServeDeploySchema, data, (), known, source))
    rest = {key: value for key, value in data.items() if key != "applications"}
    faults += _validate(ServeDeploySchema, {**rest, "applications": []}, source)
    faults += _check_port(data, source)
    applications = data.get("applications")
    if applications is None:
        return [*faults, Fault(source.at("applications"), "is required", "list the applications")]
    if not isinstance(applications, list):
        message = f"must be a list, not {show_value(applications)}"
        return [*faults, Fault(source.at("applications"), message)]
    for index, application in enumerate(applications):
        faults += _check_application(application, source.under("applications", index))
    return faults


def _check_port(data: Mapping[str, Any], source: Source) -> Iterator[Fault]:
    """Yields `http_options.port` where it is none: Ray's schema takes every whole number."""
    options = data.get("http_options")
    port = options.get("port") if isinstance(options, Mapping) else None
    try:
        number = MIN_PORT if port is None else int(port)
    except (TypeError, ValueError, OverflowError):
        return  # the schema says it
    if not MIN_PORT <= number <= MAX_PORT:
        message = f"must be from {MIN_PORT} to {MAX_PORT}, not {show_value(port)}"
        yield Fault(source.at("http_options", "port"), message)


def _check_application(application: Any, source: Source) -> Iterator[Fault]:
    if not isinstance(application, dict):
        yield Fault(source.at(), f"must be a mapping, not {show_value(application)}")
        return
    for key in ("host", "port"):
        if key in application:
            fix = f"set http_options.{key} at the top of the file"
            yield Fault(source.at(key), "cannot differ between applications", fix)
    rest = {key: value for key, value in application.items() if key != "deployments"}
    yield from _validate(ServeApplicationSchema, rest, source)
    deployments = application.get("deployments", [])
    if not isinstance(deployments, list):
        message = f"must be a list, not {show_value(deployments)}"
        yield Fault(source.at("deployments"), message)
        return
    for index, deployment in enumerate(deployments):
        at = source.under("deployments", index)
        if isinstance(deployment, dict):
            yield from _check_deployment(deployment, at)
        else:
            yield Fault(at.at(), f"must be a mapping, not {show_value(deployment)}")


def _check_deployment(deployment: dict[str, Any], source: Source) -> Iterator[Fault]:
    rest = dict(deployment)
    for key, model in _DEPLOYMENT_SECTIONS.items():
        section = deployment.get(key)
        if isinstance(section, dict):
            faults = _validate(model, section, source.under(key))
            yield from faults
            if faults:
                del rest[key]
    yield from _validate(DeploymentSchema, rest, source)


def _validate(model: type[BaseModel], data: Mapping[str, Any], source: Source) -> list[Fault]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Ray's deprecations concern the deployment, not this
            # Ray's validators write into what they check.
            model.model_validate(copy.deepcopy(dict(data)))
    except ValidationError as error:
        first: dict[str, Fault] = {}
        for fault in faults_of(error, model, source):
            # Each branch of a union reports the same value: one report is enough.
            first.setdefault(fault.place, fault)
        return list(first.values())
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        return [Fault(source.at(), f"is refused by Ray Serve: {error}")]
    return []


def _unknown_keys(
    model: type[BaseModel], data: Any, path: KeyPath, known: list[NamePath], source: Source
) -> Iterator[Fault]:
    if not isinstance(data, Mapping):
        return
    annotations = field_names(model)
    for key, value in data.items():
        here = (*path, str(key))
        if key not in annotations:
            yield unknown_key(here, known, source)
            continue
        for part, _ in models_in(annotations[key]):
            if isinstance(value, list):
                for index, item in enumerate(value):
                    yield from _unknown_keys(part, item, (*here, index), known, source)
            else:
                yield from _unknown_keys(part, value, here, known, source)
