"""Mistakes of containers, names and templates: each is planted, and found."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.k8s_manifests import (
    at,
)
from tests.support.k8s_mistakes import all_components, faults, spoil

HEAD = "RayService:spec.rayClusterConfig.headGroupSpec"
CLUSTER = "RayService:spec.rayClusterConfig"
HEAD_POD = f"{HEAD}.template.spec"
HEAD_BOX = f"{HEAD_POD}.containers.0"
GROUP = "RayService:spec.rayClusterConfig.workerGroupSpecs"
CPU_POD = f"{GROUP}.0.template.spec"
CPU_BOX = f"{CPU_POD}.containers.0"
GPU_POD = f"{GROUP}.1.template.spec"
JOB_POD = "Job:spec.template.spec"
JOB_BOX = f"{JOB_POD}.containers.0"
REDIS_BOX = "StatefulSet:spec.template.spec.containers.0"
ENV = "ConfigMap/truthgpt-env-:data"
ROUTE = "HTTPRoute/truthgpt:spec.rules.0"
ALERTS = "PrometheusRule:spec.groups.0.rules"
GPU_BOX = f"{GPU_POD}.containers.0"
CLAIM = "PersistentVolumeClaim:spec"
SPREAD = f"{CPU_POD}.topologySpreadConstraints.0"
ZONE = "topology.kubernetes.io/zone"
PROFILE = "pod-security.kubernetes.io"
RESTRICTED = {f"{PROFILE}/enforce": "baseline", f"{PROFILE}/warn": "restricted"}
TYPO = {**RESTRICTED, f"{PROFILE}/enforced": "restricted"}
NO_LEVEL = {**RESTRICTED, f"{PROFILE}/audit": "strict"}
FT = f"{CLUSTER}.gcsFaultToleranceOptions.redisAddress"


MISTAKES: list[tuple[str, str, Any, str]] = [
    ("routes_lead_to_the_service", f"{ROUTE}.matches.0.path.type", "Exact", "Exact /v1"),
    ("routes_lead_to_the_service", f"{ROUTE}.matches.1.path.type", "PathPrefix", "/health"),
    ("routes_lead_to_the_service", "Gateway:spec.listeners.0.tls.mode", "Passthrough", "TLS"),
    (
        "routes_lead_to_the_service",
        "Gateway:spec.listeners.0.allowedRoutes.namespaces.from",
        "All",
        "other namespaces",
    ),
    ("redis_is_reached", FT, "truthgpt-redis.default:6379", "another namespace"),
    ("redis_is_reached", FT, "redis.truthgpt.svc:6379", "no Service redis"),
    ("redis_is_reached", f"{REDIS_BOX}.command.2", ("everysec", "no"), "no log"),
    ("redis_is_reached", f"{REDIS_BOX}.command.2", ("requirepass %s", "# %s"), "password"),
    ("redis_is_reached", f"{REDIS_BOX}.command.2", ("> /tmp/redis", "> /tmp/r"), "password"),
    ("redis_is_reached", "Service:spec.ports.0.protocol", "UDP", "UDP"),
    ("versions_agree", f"{REDIS_BOX}.image", "redis:7.4.0-bookworm", "known holes"),
    ("texts_of_alerts_fit", f"{ALERTS}.5.expr", ('"false"', '"False"'), "condition False"),
    ("texts_of_alerts_fit", f"{ALERTS}.1.annotations.summary", "{{ $value | human }}", "human"),
    ("texts_of_alerts_fit", f"{ALERTS}.2.annotations.summary", "{{ $value }", "braces"),
    (
        "dashboards_are_found",
        "ConfigMap/truthgpt-dashboards-:metadata.labels",
        {"grafana-dashboard": "1"},
        "grafana_dashboard",
    ),
    ("dashboards_are_found", "ConfigMap/truthgpt-dashboards-:data", {}, "has []"),
    ("containers_are_plain", f"{HEAD_BOX}.env.1.valueFrom.secretKeyRef.optional", True, "optional"),
    ("containers_are_plain", f"{CPU_BOX}.envFrom.0.configMapRef.optional", True, "optional"),
    ("containers_are_plain", f"{CPU_BOX}.ports.0.protocol", "UDP", "UDP"),
    ("containers_are_plain", f"{HEAD_BOX}.ports.5.name", "dashboard-metrics", "longer than 15"),
    ("containers_are_plain", f"{HEAD_BOX}.ports.5.containerPort", 8080, "twice"),
    ("containers_are_plain", f"{CPU_BOX}.volumeMounts.3.subPath", "keys.yaml", "subPath"),
    ("containers_are_plain", f"{JOB_BOX}.volumeMounts.4.mountPath", "/models", "twice"),
    ("containers_are_plain", f"{JOB_BOX}.securityContext.runAsNonRoot", False, "runAsNonRoot"),
    ("containers_are_plain", f"{JOB_BOX}.securityContext.runAsUser", 1001, "runAsUser"),
    ("containers_are_plain", f"{HEAD_POD}.securityContext.sysctls", [], "sysctls"),
    ("containers_are_plain", f"{GPU_POD}.dnsPolicy", "Default", "no name of the cluster"),
    ("containers_are_plain", f"{CPU_POD}.volumes.2.emptyDir.medium", "Memory", "in memory"),
    ("containers_are_plain", f"{CPU_BOX}.resources.requests.memory", "16m", "start no Ray"),
    ("containers_are_plain", f"{HEAD_BOX}.resources.limits.memory", "8Mi", "start no Ray"),
    (
        "pods_are_restricted",
        f"{JOB_POD}.initContainers",
        [{"name": "own", "image": "truthgpt-serve-cpu:0.1.0"}],
        "more rights",
    ),
    ("parameters_fit", f"{HEAD}.rayStartParams", {"num_cpus": "0"}, "no --num_cpus"),
    ("parameters_fit", f"{HEAD}.rayStartParams.port", "6380", "container port 6379"),
    ("parameters_fit", f"{GROUP}.0.rayStartParams.metrics-export-port", "9090", "9090"),
    ("parameters_fit", f"{HEAD}.rayStartParams.dashboard-host", "127.0.0.1", "operator"),
    ("parameters_fit", f"{HEAD}.rayStartParams.object-store-memory", "100000000000", "half"),
    ("parameters_fit", f"{GROUP}.1.rayStartParams.num-gpus", "8", "its limit 1"),
    ("parameters_fit", f"{HEAD_BOX}.name", "sidecar", "first container"),
    ("parameters_fit", f"{CPU_BOX}.command", ["ray", "start"], "the command"),
    ("parameters_fit", f"{HEAD_BOX}.args", ["serve", "run"], "the command"),
    ("parameters_fit", f"{CPU_BOX}.startupProbe", {}, "startupProbe"),
    ("parameters_fit", f"{CLUSTER}.suspend", True, "suspended"),
    ("autoscaler_v2", f"{CLUSTER}.autoscalerOptions.resources.requests.memory", "2Gi", "limit"),
    ("variables_are_read", f"{ENV}.TRUTHGPT_CPU_NODE_LABELS", "a=b", "nothing reads"),
    ("variables_are_read", f"{ENV}.RAY_SERVE_HAPROXY_NBTHREADS", "2", "nothing reads"),
    ("variables_are_read", f"{ENV}.RAY_AUTH_TOKEN", "abc", "token"),
    ("variables_are_read", f"{ENV}.RAY_SERVE_ENABLE_HA_PROXY", "0", "HAProxy is off"),
    ("variables_are_read", f"{ENV}.HF_HUB_CACHE", "/tmp/hub", "not in HF_HOME"),
    ("variables_are_read", f"{ENV}.HF_HUB_OFFLINE", "1", "Job that downloads"),
    (
        "variables_are_read",
        f"{ENV}.RAY_SERVE_HAPROXY_BINARY_PATH",
        "/opt/truthgpt/bin/truthgpt-haproxy",
        "no program",
    ),
    ("redis_in_one_place", f"{ENV}.RAY_REDIS_ADDRESS", "redis:6379", "RAY_REDIS_ADDRESS"),
    ("jobs_have_time", "Job:spec.activeDeadlineSeconds", 144, "after 144 s"),
    ("groups_are_in_order", f"{GROUP}.1.groupName", "gpu-A100", "DNS label"),
    ("names_resolve", f"{HEAD_POD}.serviceAccountName", "truthgpt", "ServiceAccount truthgpt"),
    ("names_resolve", f"{CPU_POD}.priorityClassName", "high", "PriorityClass high"),
    ("names_resolve", f"{GPU_POD}.runtimeClassName", "nvidia-legacy", "RuntimeClass"),
    ("names_resolve", f"{CPU_POD}.nodeSelector", {"truthgpt.io/pool": "cpu"}, "no node"),
    ("disruption_budget", "PodDisruptionBudget:spec.maxUnavailable", 1, "integer"),
    ("selectors_select", f"{CPU_POD}.topologySpreadConstraints.0.matchLabelKeys", ["a"], "labels"),
    (
        "selectors_select",
        f"{CPU_POD}.topologySpreadConstraints.0.whenUnsatisfiable",
        "DoNotSchedule",
        "all clusters",
    ),
    ("cache_is_shared", f"{CLAIM}.accessModes", ["ReadWriteOncePod"], "the others wait"),
    (
        "downloads_are_found",
        f"{JOB_BOX}.env.0",
        {"name": "HF_HUB_CACHE", "value": "/models/huggingface/models"},
        "Job/truthgpt-prefetch']: /models/huggingface/models",
    ),
    (
        "downloads_are_found",
        f"{GPU_BOX}.env.0",
        {"name": "TRANSFORMERS_CACHE", "value": "/models/huggingface/old"},
        "/models/huggingface/old",
    ),
    (
        "downloads_are_found",
        f"{CPU_POD}.volumes.1.persistentVolumeClaim.claimName",
        "weights",
        "weights",
    ),
    (
        "files_are_mounted",
        "RayService:spec.serveConfigV2",
        ("args: {}", "args: {auth: {keys_file: /opt/truthgpt/key/keys.yaml}}"),
        "cpu: the Serve file: keys_file /opt/truthgpt/key/keys.yaml is on no volume",
    ),
    (
        "files_are_mounted",
        "RayService:spec.serveConfigV2",
        ("args: {}", "args: {auth: {keys_file: /opt/truthgpt/keys/key.yaml}}"),
        "is not in truthgpt-keys, which has ['keys.yaml']",
    ),
    (
        "files_are_mounted",
        "RayService:spec.serveConfigV2",
        ("args: {}", "args: {auth: {keys_file: /models/keys.yaml}}"),
        "is in no Secret's folder",
    ),
    (
        "files_are_mounted",
        f"{ENV}.TRUTHGPT_USAGE_FILE",
        "/opt/truthgpt/keys/usage.sqlite",
        "is read-only",
    ),
    ("files_are_mounted", f"{ENV}.TRUTHGPT_KEYS_FILE", "/opt/truthgpt/keys/keys.yml", "is not in"),
    ("zones_are_required", f"{SPREAD}.topologyKey", ZONE, "may all be in one zone"),
    (
        "images_are_of_one_registry",
        f"{CPU_BOX}.image",
        "r.test/truthgpt-serve-cpu:0.1.0",
        "several places",
    ),
    ("images_are_of_one_registry", f"{JOB_BOX}.image", "r.test/truthgpt-serve-cpu", "'r.test'"),
    (
        "configs_are_named",
        "ConfigMap/truthgpt-prefetch-:metadata.name",
        "prefetch",
        "nothing reads",
    ),
    ("configs_are_named", "ConfigMap/truthgpt-dashboards-:metadata.labels", {}, "dashboards"),
    ("pods_are_restricted", "Namespace:metadata.labels", TYPO, "enforced is unknown"),
    ("pods_are_restricted", "Namespace:metadata.labels", NO_LEVEL, "audit is strict"),
    (
        "commands_and_probes_fit",
        f"{JOB_BOX}.command",
        ["python", "/opt/truthgpt/serve/serve.yaml", "/opt/truthgpt/prefetch/prefetch.py"],
        "runs",
    ),
]


def test_every_component_together_has_no_faults() -> None:
    assert faults(all_components()) == {}


@pytest.mark.parametrize(
    ("rule", "place", "value", "expected"), MISTAKES, ids=[f"{row[0]}:{row[3]}" for row in MISTAKES]
)
def test_mistakes_are_found(rule: str, place: str, value: Any, expected: str) -> None:
    found = faults(spoil(all_components(), place, value))
    assert expected in "\n".join(found.get(rule, []))


def test_a_group_in_front_of_others_is_found() -> None:
    manifests = all_components()
    groups = at(next(m for m in manifests if m["kind"] == "RayService"), GROUP.partition(":")[2])
    found = faults(spoil(manifests, GROUP, [groups[1], groups[0], *groups[2:]]))
    assert "makes a new cluster" in "\n".join(found["groups_are_in_order"])


def test_a_secret_with_a_hash_in_its_name_is_found() -> None:
    secret = {"apiVersion": "v1", "kind": "Secret", "data": {"hf-token": ""}}
    metadata = {"name": "truthgpt-secrets-h5k2", "namespace": "truthgpt"}
    found = faults([*all_components(), {**secret, "metadata": metadata}])
    assert "nothing names the Secret" in "\n".join(found["secrets_are_named"])


def test_a_config_map_beside_the_one_that_pods_read_is_found() -> None:
    twin = {"apiVersion": "v1", "kind": "ConfigMap", "data": {"TRUTHGPT_ACCELERATOR": "gpu"}}
    metadata = {"name": "truthgpt-env-0123456789", "namespace": "truthgpt"}
    found = faults([*all_components(), {**twin, "metadata": metadata}])
    assert "2 ConfigMaps truthgpt-env, of which Pods read" in "\n".join(found["configs_are_named"])


def test_the_job_can_be_left_out_with_its_policy_only() -> None:
    whole = all_components()
    without = [m for m in whole if m["metadata"]["name"] != "truthgpt-prefetch"]
    assert faults(without) == {}
    job = next(m for m in whole if m["kind"] == "Job")
    assert faults([*without, job])["network_is_closed"] == ["no policy for prefetch"]


def test_a_pod_without_a_policy_is_found() -> None:
    redis = ("NetworkPolicy", "truthgpt-redis")
    found = faults([m for m in all_components() if (m["kind"], m["metadata"]["name"]) != redis])
    assert "no policy for redis" in found["network_is_closed"]
