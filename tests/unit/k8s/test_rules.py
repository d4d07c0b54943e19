from __future__ import annotations

from typing import Any

import pytest

from tests.support.k8s_manifests import (
    COMPONENTS,
    OVERLAYS,
    REMOVE,
    Manifest,
    at,
    build,
    one,
    parse,
    run_kustomize,
    write_overlay,
)
from tests.support.k8s_mistakes import faults, spoil
from tests.support.k8s_rules import RULES

CLUSTER = "RayService:spec.rayClusterConfig"
HEAD = f"{CLUSTER}.headGroupSpec"
HEAD_CONTAINER = f"{HEAD}.template.spec.containers.0"
WORKER = f"{CLUSTER}.workerGroupSpecs.0"
WORKER_CONTAINER = f"{WORKER}.template.spec.containers.0"
UPGRADE = "RayService:spec.upgradeStrategy"
POLICY = "NetworkPolicy/truthgpt-ray:spec"
GPU_GROUPS = ["gpu-a100", "gpu-b200", "gpu-h100", "gpu-h200", "gpu-l4", "gpu-l40s"]


def variable(manifests: list[Manifest], name: str, value: Any) -> list[Manifest]:
    """Changes a variable of every Pod of Ray's, which all read one ConfigMap."""
    config = next(m for m in manifests if m["metadata"]["name"].startswith("truthgpt-env-"))
    return spoil(manifests, f"ConfigMap/{config['metadata']['name']}:data.{name}", value)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlays_keep_the_rules(overlay: str) -> None:
    assert faults(build(overlay)) == {}


def test_workers_of_ha_are_in_different_zones() -> None:
    group = at(one(build("overlays/ha"), "RayService"), WORKER.partition(":")[2])
    spreads = group["template"]["spec"]["topologySpreadConstraints"]
    wanted = {spread["topologyKey"]: spread["whenUnsatisfiable"] for spread in spreads}
    assert wanted["topology.kubernetes.io/zone"] == "DoNotSchedule"


@pytest.mark.parametrize("component", COMPONENTS)
def test_each_component_keeps_the_rules(component: str, tmp_path: Any) -> None:
    done = run_kustomize(write_overlay(tmp_path, (component,)))
    assert done.returncode == 0, done.stderr
    assert faults(parse(done.stdout)) == {}


def test_all_components_that_go_together_keep_the_rules(tmp_path: Any) -> None:
    together = tuple(name for name in COMPONENTS if "incremental" not in name)
    done = run_kustomize(write_overlay(tmp_path, together))
    assert done.returncode == 0, done.stderr
    manifests = parse(done.stdout)
    assert faults(manifests) == {}
    specs = one(manifests, "RayService")["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    assert [group["groupName"] for group in specs] == ["cpu", *GPU_GROUPS]


def test_an_incremental_upgrade_excludes_our_gateway(tmp_path: Any) -> None:
    both = ("components/gateway", "components/incremental-upgrade")
    done = run_kustomize(write_overlay(tmp_path, both))
    assert "upgrade_steps" in faults(parse(done.stdout))


@pytest.mark.parametrize(
    ("rule", "place", "value"),
    [
        ("name_fits", "RayService:metadata.name", "t" * 48),
        ("name_fits", "RayService:metadata.name", "TruthGPT"),
        ("name_fits", "RayService:metadata.name", "1st"),
        ("serve_port_on_head", f"{HEAD_CONTAINER}.ports.6", REMOVE),
        ("serve_port_on_head", f"{HEAD_CONTAINER}.ports.6.name", "http"),
        ("serve_port_on_head", f"{WORKER_CONTAINER}.ports.0.containerPort", 8001),
        ("serve_port_on_head", f"{HEAD}.headService", {"metadata": {"name": "x"}}),
        ("resources_in_one_place", f"{HEAD}.resources", {"CPU": "1"}),
        ("resources_in_one_place", f"{HEAD}.rayStartParams.labels", "a=b"),
        ("resources_in_one_place", f"{WORKER}.rayStartParams.labels", "a=b"),
        ("replicas_in_order", f"{WORKER}.minReplicas", -1),
        ("replicas_in_order", f"{WORKER}.minReplicas", 11),
        ("replicas_in_order", f"{WORKER}.replicas", 11),
        ("upgrade_steps", f"{UPGRADE}.type", "Rolling"),
        ("upgrade_steps", UPGRADE, {"type": "NewClusterWithIncrementalUpgrade"}),
        ("autoscaler_v2", f"{CLUSTER}.enableInTreeAutoscaling", REMOVE),
        ("autoscaler_v2", f"{CLUSTER}.autoscalerOptions.version", "v1"),
        ("autoscaler_v2", f"{WORKER}.template.spec.restartPolicy", "Always"),
        ("autoscaler_v2", f"{WORKER}.idleTimeoutSeconds", -1),
        ("token_authentication", f"{CLUSTER}.authOptions", REMOVE),
        ("token_authentication", f"{CLUSTER}.authOptions.enableK8sTokenAuth", True),
        ("token_authentication", f"{CLUSTER}.rayVersion", "2.51.0"),
        ("redis_in_one_place", f"{HEAD}.rayStartParams.redis-password", "x"),
        ("redis_in_one_place", f"{HEAD}.rayStartParams.redis-username", "x"),
        ("redis_in_one_place", f"{HEAD_CONTAINER}.env.0.name", "RAY_REDIS_ADDRESS"),
        ("redis_in_one_place", f"{HEAD_CONTAINER}.env.0.name", "REDIS_PASSWORD"),
        ("feature_gates", f"{CLUSTER}.networkPolicy", {"mode": "DenyAll"}),
        ("feature_gates", f"{CLUSTER}.tlsOptions", {"enabled": True}),
        ("feature_gates", f"{CLUSTER}.historyServerOptions", {}),
        ("haproxy_everywhere", f"{HEAD_CONTAINER}.envFrom.0", REMOVE),
        ("haproxy_everywhere", f"{WORKER_CONTAINER}.envFrom.1", REMOVE),
        ("haproxy_everywhere", f"{WORKER_CONTAINER}.env.0", {"name": "A", "value": "1"}),
        ("haproxy_everywhere", "RayService:spec.serveConfigV2", "proxy_location: HeadOnly"),
        ("operator_probes", f"{HEAD_CONTAINER}.livenessProbe", {}),
        ("operator_probes", f"{HEAD_CONTAINER}.readinessProbe", {}),
        ("operator_probes", f"{WORKER_CONTAINER}.readinessProbe", {}),
        ("graceful_shutdown", f"{WORKER}.template.spec.terminationGracePeriodSeconds", 300),
        ("graceful_shutdown", f"{HEAD}.template.spec.terminationGracePeriodSeconds", REMOVE),
        ("graceful_shutdown", f"{WORKER_CONTAINER}.lifecycle", {"preStop": {}}),
        ("disruption_budget", "PodDisruptionBudget:spec.minAvailable", "50%"),
        ("disruption_budget", "PodDisruptionBudget:spec.minAvailable", 2),
        ("disruption_budget", "PodDisruptionBudget:spec.unhealthyPodEvictionPolicy", REMOVE),
        ("disruption_budget", "PodDisruptionBudget:spec.minAvailable", REMOVE),
        ("disruption_budget", f"{WORKER}.template.metadata.labels", {}),
        ("writable_folders", f"{WORKER_CONTAINER}.volumeMounts.2", REMOVE),
        ("writable_folders", f"{WORKER_CONTAINER}.securityContext.readOnlyRootFilesystem", False),
        ("writable_folders", f"{HEAD}.template.spec.securityContext.runAsNonRoot", REMOVE),
        ("writable_folders", f"{HEAD_CONTAINER}.securityContext", {}),
        ("references_resolve", f"{WORKER}.template.spec.volumes.0.configMap.name", "models"),
        ("references_resolve", f"{HEAD_CONTAINER}.volumeMounts.0.name", "model"),
        (
            "references_resolve",
            f"{HEAD}.template.spec.volumes.1.persistentVolumeClaim.claimName",
            "cache",
        ),
        ("network_is_closed", f"{POLICY}.ingress.1.ports", REMOVE),
        ("network_is_closed", f"{POLICY}.ingress.2.ports.0.port", 10001),
        ("network_is_closed", f"{POLICY}.ingress.2.ports.0.port", 30000),
        ("network_is_closed", f"{POLICY}.ingress.0.from.0", {"podSelector": {}}),
        ("network_is_closed", f"{POLICY}.ingress.2.from", REMOVE),
        ("network_is_closed", f"{POLICY}.policyTypes.0", REMOVE),
        ("network_is_closed", f"{POLICY}.podSelector.matchLabels", {"app": "x"}),
    ],
)
def test_mistakes_are_found(rule: str, place: str, value: Any) -> None:
    assert rule in faults(spoil(build("base"), place, value))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("stepSizePercent", 21),
        ("stepSizePercent", REMOVE),
        ("maxSurgePercent", 101),
        ("intervalSeconds", 0),
    ],
)
def test_mistakes_in_an_incremental_upgrade_are_found(key: str, value: Any, tmp_path: Any) -> None:
    done = run_kustomize(write_overlay(tmp_path, ("components/incremental-upgrade",)))
    manifests = parse(done.stdout)
    assert faults(manifests) == {}
    wrong = spoil(manifests, f"{UPGRADE}.clusterUpgradeOptions.{key}", value)
    assert set(faults(wrong)) == {"upgrade_steps"}


@pytest.mark.parametrize(
    ("rule", "name", "value"),
    [
        ("haproxy_everywhere", "RAY_SERVE_HAPROXY_BINARY_PATH", REMOVE),
        ("haproxy_everywhere", "RAY_SERVE_ENABLE_HA_PROXY", ""),
        ("token_authentication", "RAY_AUTH_MODE", "disabled"),
        ("autoscaler_v2", "RAY_enable_autoscaler_v2", "1"),
        ("graceful_shutdown", "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", "600"),
        ("graceful_shutdown", "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", REMOVE),
    ],
)
def test_wrong_variables_are_found(rule: str, name: str, value: Any) -> None:
    assert rule in faults(variable(build("base"), name, value))


def test_each_rule_catches_three_mistakes() -> None:
    planted = [
        mark.args[1]
        for test in (test_mistakes_are_found, test_wrong_variables_are_found)
        for mark in test.pytestmark
    ]
    # Those from `one_namespace` on are in test_connections.py.
    last = [rule.__name__ for rule in RULES].index("one_namespace")
    counts = {rule.__name__: 0 for rule in RULES[:last]}
    for rows in planted:
        for row in rows:
            counts[row[0]] += 1
    counts["upgrade_steps"] += 4  # of an incremental upgrade
    assert {name: count for name, count in counts.items() if count < 3} == {}
