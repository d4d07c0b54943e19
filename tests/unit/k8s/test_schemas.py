from __future__ import annotations

from typing import Any

import pytest

from tests.support.k8s_manifests import (
    COMPONENTS,
    OVERLAYS,
    REMOVE,
    build,
    one,
    parse,
    run_kustomize,
    spoiled,
    write_overlay,
)
from tests.support.k8s_schemas import harden, manifest_faults

HEAD = "spec.rayClusterConfig.headGroupSpec"
WORKER = "spec.rayClusterConfig.workerGroupSpecs.0"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_manifest_fits_its_schema(overlay: str) -> None:
    manifests = [m for m in build(overlay) if m["kind"] != "RayService"]
    assert len(manifests) >= 10
    faults = {m["metadata"]["name"]: manifest_faults(m) for m in manifests}
    assert {name: found for name, found in faults.items() if found} == {}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_ray_service_fits_kuberays_schema(overlay: str) -> None:
    assert manifest_faults(one(build(overlay), "RayService")) == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_cluster_that_the_operator_makes_fits_too(overlay: str) -> None:
    spec = one(build(overlay), "RayService")["spec"]["rayClusterConfig"]
    cluster = {"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": {"name": "x"}}
    assert manifest_faults({**cluster, "spec": spec}) == []
    assert manifest_faults({**cluster, "spec": {**spec, "workerGroups": []}}) != []


@pytest.mark.parametrize("component", COMPONENTS)
def test_every_component_fits_alone(component: str, tmp_path: Any) -> None:
    done = run_kustomize(write_overlay(tmp_path, (component,)))
    assert done.returncode == 0, done.stderr
    faults = [fault for m in parse(done.stdout) for fault in manifest_faults(m)]
    assert faults == []


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("spec.rayClusterConfig.enableInTreeAutoScaling", True, "enableInTreeAutoScaling"),
        ("spec.serveConfig", "", "serveConfig"),
        (f"{HEAD}.template.spec.containers.0.ports.0.containerport", 1, "containerport"),
        (f"{HEAD}.template.spec.terminationGracePeriodSeconds", "330", "'330'"),
        (f"{WORKER}.groupName", REMOVE, "groupName"),
        (f"{WORKER}.template.spec.containers.0.envFrom.0.configMapRef.names", "x", "names"),
        (f"{WORKER}.template.metadata.labels.x", 1, "1 is not"),
        ("spec.rayClusterConfig.authOptions.mode", "Token", "Token"),
        ("spec.rayClusterConfig.autoscalerOptions.upscalingMode", "Fast", "Fast"),
        ("metadata.label", {}, "label"),
        ("apiVersion", "ray.io/v1alpha1", "ray.io/v1"),
    ],
)
def test_mistakes_in_a_ray_service_are_found(path: str, value: Any, expected: str) -> None:
    service = one(build("base"), "RayService")
    assert expected in "\n".join(manifest_faults(spoiled(service, path, value)))


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("PodDisruptionBudget", "spec.minAvailible", 1),
        ("PersistentVolumeClaim", "spec.resources.requests.storage", []),
        ("PersistentVolumeClaim", "spec.accessmodes", ["ReadWriteMany"]),
        ("Job", "spec.template.spec.volumes.0.name", REMOVE),
        ("Job", "spec.template.spec.containers.0.resource", {}),
        ("Job", "spec.backoffLimit", "4"),
        ("Job", "spec.template.spec.containers.0.name", REMOVE),
        ("NetworkPolicy", "spec.ingres", []),
        ("StatefulSet", "spec.serviceName", 3),
        ("StatefulSet", "spec.template.spec.securityContext.runAsRoot", False),
    ],
)
def test_mistakes_in_built_in_kinds_are_found(kind: str, path: str, value: Any) -> None:
    manifest = next(m for m in build("overlays/ha") if m["kind"] == kind)
    assert manifest_faults(manifest) == []
    assert manifest_faults(spoiled(manifest, path, value)) != []


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("Gateway", "spec.listeners.0.tls.certificateRef", {}),
        ("Gateway", "spec.listeners.0.port", 70000),
        ("Gateway", "spec.gatewayClassName", REMOVE),
        ("HTTPRoute", "spec.rules.0.matches.0.path.type", "Prefix"),
        ("HTTPRoute", "spec.rules.0.timeouts.request", "11 minutes"),
        ("HTTPRoute", "spec.rules.0.backendRefs.0.service", "x"),
        ("PodMonitor", "spec.podMetricsEndpoints.0.targetLabels", []),
        ("PodMonitor", "spec.selector", REMOVE),
        ("PrometheusRule", "spec.groups.0.rules.0.expression", "up"),
        ("PrometheusRule", "spec.groups.0.rules.1.for", "five minutes"),
        ("PodMonitor", "spec.podMetricsEndpoints.0.scrapeInterval", "30s"),
        ("PodMonitor", "apiVersion", "monitoring.coreos.com/v1alpha1"),
    ],
)
def test_mistakes_in_kinds_of_other_projects_are_found(kind: str, path: str, value: Any) -> None:
    manifest = next(m for m in build("overlays/ha") if m["kind"] == kind)
    assert manifest_faults(manifest) == []
    assert manifest_faults(spoiled(manifest, path, value)) != []


def test_a_kind_without_a_schema_is_a_fault() -> None:
    assert manifest_faults({"apiVersion": "v1", "kind": "Pot", "metadata": {}}) != []


def test_hardening_closes_objects_and_keeps_what_is_meant_to_be_open() -> None:
    open_map = {"type": "object", "additionalProperties": {"type": "string"}}
    kept = {"type": "object", "properties": {}, "x-kubernetes-preserve-unknown-fields": True}
    hardened = harden(
        {
            "type": "object",
            "required": ["a", "b"],
            "properties": {
                "a": {"type": "integer", "default": 1},
                "b": {"x-kubernetes-int-or-string": True},
                "properties": {"type": "string"},
                "labels": open_map,
                "any": kept,
            },
        }
    )
    assert hardened["additionalProperties"] is False
    assert hardened["required"] == ["b"]
    assert hardened["properties"]["b"] == {"anyOf": [{"type": "integer"}, {"type": "string"}]}
    assert hardened["properties"]["properties"] == {"type": "string"}
    assert hardened["properties"]["labels"] == open_map
    assert "additionalProperties" not in hardened["properties"]["any"]
