"""JSON Schemas for the manifests of k8s/: KubeRay's own hardened, and small ones of other projects.

An API server drops unknown keys without a word; here they fail. Knows no manifest.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped] # the package has no type information
import pytest
import yaml
from jsonschema import Draft4Validator  # type: ignore[import-untyped] # it has none either

from tests.support.k8s_manifests import Manifest

CRD_VARIABLE = "KUBERAY_CRD_DIR"
CRD_FILES = {"RayService": "ray.io_rayservices.yaml", "RayCluster": "ray.io_rayclusters.yaml"}
HOW_TO_GET = (
    f"set {CRD_VARIABLE} to a folder with {' and '.join(CRD_FILES.values())} of KubeRay 1.7.0: "
    "they are in helm-chart/kuberay-operator/crds of its release v1.7.0 at "
    "https://github.com/ray-project/kuberay"
)
KUBERNETES = "1.33"
"""The oldest release whose built-in kinds the manifests must fit."""

Schema = dict[str, Any]


@functools.cache
def load_crd(kind: str) -> Schema:
    """Returns KubeRay's schema of a kind in `ray.io/v1`, hardened; skips the test without files."""
    folder = os.environ.get(CRD_VARIABLE)
    path = Path(folder or "") / CRD_FILES[kind]
    if not folder or not path.is_file():
        pytest.skip(HOW_TO_GET)
    definition = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)
    versions = {version["name"]: version for version in definition["spec"]["versions"]}
    schema: Schema = harden(versions["v1"]["schema"]["openAPIV3Schema"])
    # Kubernetes itself checks metadata; here the keys that a person writes are known.
    text = {"type": "object", "additionalProperties": {"type": "string"}}
    schema["properties"]["metadata"] = closed(
        {"name": {"type": "string"}, "namespace": {"type": "string"}}
        | {"labels": text, "annotations": text}
    )
    return schema


def harden(schema: Any) -> Any:
    """Returns a copy of an OpenAPI schema that refuses what an API server would drop or fill in.

    Objects with named properties take no others, unless the schema says what others may be; a
    required property that has a default is not required; an int-or-string is either.
    """
    if isinstance(schema, list):
        return [harden(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        kept = {key: schema[key] for key in ("pattern", "description") if key in schema}
        return {**kept, "anyOf": [{"type": "integer"}, {"type": "string"}]}
    result = {key: harden(value) for key, value in schema.items() if key != "properties"}
    properties = schema.get("properties")
    if not isinstance(properties, dict):
        return result
    result["properties"] = {name: harden(value) for name, value in properties.items()}
    is_open = "additionalProperties" in schema or schema.get("x-kubernetes-preserve-unknown-fields")
    if not is_open:
        result["additionalProperties"] = False
    required = [name for name in schema.get("required", []) if "default" not in properties[name]]
    result.pop("required", None)
    return {**result, "required": required} if required else result


def closed(properties: Schema, *required: str) -> Schema:
    """Returns the schema of an object with these properties and no others."""
    schema: Schema = {"type": "object", "properties": properties, "additionalProperties": False}
    return {**schema, "required": list(required)} if required else schema


def listed(item: Schema) -> Schema:
    """Returns the schema of a list that is not empty."""
    return {"type": "array", "items": item, "minItems": 1}


def one_of(*values: str) -> Schema:
    """Returns the schema of one of these texts."""
    return {"enum": list(values)}


TEXT: Schema = {"type": "string", "minLength": 1}
NUMBER: Schema = {"type": "integer"}
PORT: Schema = {"type": "integer", "minimum": 1, "maximum": 65535}
DURATION: Schema = {"type": "string", "pattern": r"^([0-9]{1,5}(h|m|s|ms)){1,4}$"}
TEXTS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}
META = closed({"name": TEXT, "namespace": TEXT, "labels": TEXTS, "annotations": TEXTS}, "name")


def _resource(version: str, kind: str, spec: Schema) -> Schema:
    keys = {"apiVersion": one_of(version), "kind": one_of(kind), "metadata": META, "spec": spec}
    return closed(keys, *keys)


_GATEWAY_SPEC = closed(
    {
        "gatewayClassName": TEXT,
        "listeners": listed(
            closed(
                {
                    "name": TEXT,
                    "hostname": TEXT,
                    "port": PORT,
                    "protocol": one_of("HTTP", "HTTPS", "TLS", "TCP", "UDP"),
                    "tls": closed(
                        {
                            "mode": one_of("Terminate", "Passthrough"),
                            "certificateRefs": listed(
                                closed({"kind": TEXT, "name": TEXT, "namespace": TEXT}, "name")
                            ),
                        }
                    ),
                    "allowedRoutes": closed(
                        {"namespaces": closed({"from": one_of("All", "Selector", "Same")})}
                    ),
                },
                "name",
                "port",
                "protocol",
            )
        ),
    },
    "gatewayClassName",
    "listeners",
)
_ROUTE_RULE = closed(
    {
        "matches": listed(
            closed(
                {
                    "path": closed(
                        {
                            "type": one_of("Exact", "PathPrefix", "RegularExpression"),
                            "value": {"type": "string", "pattern": "^/"},
                        }
                    )
                }
            )
        ),
        "filters": listed(
            closed(
                {
                    "type": one_of("RequestRedirect"),
                    "requestRedirect": closed(
                        {"scheme": one_of("http", "https"), "statusCode": {"enum": [301, 302]}}
                    ),
                },
                "type",
            )
        ),
        "timeouts": closed({"request": DURATION, "backendRequest": DURATION}),
        "backendRefs": listed(closed({"name": TEXT, "port": PORT, "weight": NUMBER}, "name")),
    }
)
_ROUTE_SPEC = closed(
    {
        "parentRefs": listed(closed({"name": TEXT, "sectionName": TEXT}, "name")),
        "hostnames": listed(TEXT),
        "rules": listed(_ROUTE_RULE),
    },
    "parentRefs",
    "rules",
)
_RELABELING = closed(
    {"sourceLabels": listed(TEXT), "targetLabel": TEXT, "replacement": TEXT}, "targetLabel"
)
_POD_MONITOR_SPEC = closed(
    {
        "selector": closed({"matchLabels": TEXTS}, "matchLabels"),
        "podMetricsEndpoints": listed(
            closed(
                {"port": TEXT, "path": TEXT, "interval": DURATION}
                | {"relabelings": listed(_RELABELING)},
                "port",
            )
        ),
    },
    "selector",
    "podMetricsEndpoints",
)
_RULE = closed(
    {"expr": TEXT, "alert": TEXT, "record": TEXT, "for": DURATION}
    | {"labels": TEXTS, "annotations": TEXTS},
    "expr",
)
_RULES_SPEC = closed(
    {
        "groups": listed(
            closed({"name": TEXT, "interval": DURATION, "rules": listed(_RULE)}, "name", "rules")
        )
    },
    "groups",
)
OTHER_PROJECTS: dict[str, Schema] = {
    kind: _resource(version, kind, spec)
    for version, kind, spec in (
        ("gateway.networking.k8s.io/v1", "Gateway", _GATEWAY_SPEC),
        ("gateway.networking.k8s.io/v1", "HTTPRoute", _ROUTE_SPEC),
        ("monitoring.coreos.com/v1", "PodMonitor", _POD_MONITOR_SPEC),
        ("monitoring.coreos.com/v1", "PrometheusRule", _RULES_SPEC),
    )
}
"""What the manifests here use of the Gateway API and of the Prometheus operator, and nothing else:
written from their references, not theirs."""


def schema_faults(manifest: Manifest, schema: Schema) -> list[str]:
    """Returns every fault of a manifest by a schema, with its place."""
    return [
        f"{'.'.join(map(str, error.absolute_path))}: {error.message[:200]}"
        for error in Draft4Validator(schema).iter_errors(manifest)
    ]


def manifest_faults(manifest: Manifest) -> list[str]:
    """Returns every fault of a manifest by the schema of its kind."""
    kind, version = manifest["kind"], manifest["apiVersion"]
    if version.startswith("ray.io/"):
        faults = schema_faults(manifest, load_crd(kind))
        return faults if version == "ray.io/v1" else [*faults, f"{version} is not ray.io/v1"]
    if kind in OTHER_PROJECTS:
        return schema_faults(manifest, OTHER_PROJECTS[kind])
    try:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [str(error)]
    except kubernetes_validate.SchemaNotFoundError:
        return [f"no schema of {version} {kind}"]
    return []
