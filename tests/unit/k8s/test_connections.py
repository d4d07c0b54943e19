"""Mistakes between two objects: each is planted into a build with every component, and found."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.k8s_manifests import (
    REMOVE,
)
from tests.support.k8s_mistakes import all_components, faults, spoil
from tests.support.k8s_rules import RULES

HEAD = "RayService:spec.rayClusterConfig.headGroupSpec"
HEAD_POD = f"{HEAD}.template.spec"
GROUP = "RayService:spec.rayClusterConfig.workerGroupSpecs"
CPU_POD = f"{GROUP}.0.template.spec"
A100_POD = f"{GROUP}.1.template.spec"
A100_TERMS = (
    f"{A100_POD}.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution"
    ".nodeSelectorTerms"
)
JOB_POD = "Job:spec.template.spec"
REDIS_POD = "StatefulSet:spec.template.spec"
ROUTE = "HTTPRoute/truthgpt:spec"
RAY_POLICY = "NetworkPolicy/truthgpt-ray:spec"
REDIS_POLICY = "NetworkPolicy/truthgpt-redis:spec"
SERVE_FILE = "RayService:spec.serveConfigV2"
FT = "RayService:spec.rayClusterConfig.gcsFaultToleranceOptions"
ENV = "ConfigMap/truthgpt-env-:data"
ALERTS = "PrometheusRule:spec.groups.0.rules"
BOARD = "ConfigMap/truthgpt-dashboards-:data"


MISTAKES: dict[str, list[tuple[str, str, Any]]] = {
    "namespace": [
        ("one_namespace", "StatefulSet:metadata.namespace", REMOVE),
        ("one_namespace", "PodMonitor/truthgpt-ray:metadata.namespace", "default"),
        ("one_namespace", "Namespace:metadata.name", "other"),
        ("one_namespace", "RayService:metadata.namespace", "other"),
    ],
    "port of a route": [
        ("routes_lead_to_the_service", f"{ROUTE}.rules.0.backendRefs.0.port", 8001),
        ("routes_lead_to_the_service", f"{ROUTE}.rules.0.backendRefs.0.port", REMOVE),
    ],
    "Service of a route": [
        ("routes_lead_to_the_service", f"{ROUTE}.rules.0.backendRefs.0.name", "truthgpt-serve"),
        ("routes_lead_to_the_service", f"{ROUTE}.rules.0.backendRefs.0.name", "truthgpt-head-svc"),
        ("routes_lead_to_the_service", f"{ROUTE}.rules.0.backendRefs", REMOVE),
    ],
    "listener": [
        ("routes_lead_to_the_service", f"{ROUTE}.parentRefs.0.sectionName", "http"),
        ("routes_lead_to_the_service", f"{ROUTE}.parentRefs.0.sectionName", "tls"),
        ("routes_lead_to_the_service", f"{ROUTE}.parentRefs.0.name", "gateway"),
        ("routes_lead_to_the_service", "Gateway:spec.listeners.0.name", "web"),
        ("routes_lead_to_the_service", "Gateway:spec.listeners.0.port", 8443),
        ("routes_lead_to_the_service", "Gateway:spec.listeners.0.tls", REMOVE),
        ("secrets_are_documented", "Gateway:spec.listeners.0.tls.certificateRefs.0.name", "tls"),
    ],
    "timeout of a route": [
        ("routes_lead_to_the_service", f"{ROUTE}.rules.0.timeouts.request", "60s"),
        ("routes_lead_to_the_service", f"{ROUTE}.rules.0.timeouts.backendRequest", "10m"),
        ("routes_lead_to_the_service", f"{ROUTE}.rules.0.timeouts", REMOVE),
    ],
    "path of a route": [
        ("routes_lead_to_the_service", f"{ROUTE}.rules.0.matches.0.path.value", "/models"),
        ("routes_lead_to_the_service", f"{ROUTE}.rules.0.matches", REMOVE),
    ],
    "Redis' port": [
        ("redis_is_reached", f"{FT}.redisAddress", "truthgpt-redis:6380"),
        ("redis_is_reached", f"{FT}.redisAddress", "redis:6379"),
        ("redis_is_reached", "Service:spec.ports.0.port", 6380),
        ("redis_is_reached", "Service:spec.ports.0.targetPort", "db"),
        ("redis_is_reached", f"{REDIS_POD}.containers.0.ports.0.containerPort", 6380),
        ("selectors_select", "Service:spec.selector", {"app": "redis"}),
        ("selectors_select", "StatefulSet:spec.serviceName", "redis"),
    ],
    "Redis' key": [
        ("secrets_are_documented", f"{FT}.redisPassword.valueFrom.secretKeyRef.key", "pass"),
        ("redis_is_reached", f"{FT}.redisPassword.valueFrom.secretKeyRef.name", "redis"),
        (
            "secrets_are_documented",
            f"{REDIS_POD}.containers.0.env.0.valueFrom.secretKeyRef.key",
            "redis-password",
        ),
    ],
    "key of the hub": [
        (
            "secrets_are_documented",
            f"{CPU_POD}.containers.0.env.0.valueFrom.secretKeyRef.key",
            "hf_token",
        ),
        (
            "secrets_are_documented",
            f"{A100_POD}.containers.0.env.0.valueFrom.secretKeyRef.name",
            "truthgpt-secret",
        ),
        (
            "secrets_are_documented",
            f"{JOB_POD}.containers.0.env.0.valueFrom.secretKeyRef",
            {"name": "truthgpt-redis", "key": "password"},
        ),
        ("secrets_are_documented", f"{JOB_POD}.containers.0.env.0.name", "HUB_TOKEN"),
    ],
    "target of a scrape": [
        (
            "scrapes_find_their_targets",
            "PodMonitor/truthgpt-ray:spec.podMetricsEndpoints.0.port",
            "metric",
        ),
        (
            "scrapes_find_their_targets",
            "PodMonitor/truthgpt-engines:spec.podMetricsEndpoints.0.port",
            "metrics",
        ),
        (
            "scrapes_find_their_targets",
            "PodMonitor/truthgpt-engines:spec.podMetricsEndpoints.0.path",
            "/models/tale/metrics",
        ),
        (
            "scrapes_find_their_targets",
            "PodMonitor/truthgpt-engines:spec.podMetricsEndpoints.0.relabelings.0.replacement",
            "tale",
        ),
        (
            "selectors_select",
            "PodMonitor/truthgpt-ray:spec.selector.matchLabels",
            {"app": "ray"},
        ),
        ("monitors_are_found", "PodMonitor/truthgpt-ray:metadata.labels.release", "other"),
        ("monitors_are_found", "PrometheusRule:metadata.labels.release", REMOVE),
    ],
    "label of a metric": [
        ("expressions_read_metrics", f"{ALERTS}.2.expr", ("application", "app")),
        ("expressions_read_metrics", f"{ALERTS}.0.expr", ("error_code", "code")),
        ("expressions_read_metrics", f"{ALERTS}.0.expr", ("by (namespace,", "by (zone,")),
        ("expressions_read_metrics", f"{ALERTS}.1.annotations.summary", "{{ $labels.pod }}"),
        ("expressions_read_metrics", f"{ALERTS}.5.expr", ("condition", "status")),
        ("expressions_read_metrics", f"{BOARD}.service.json", ("route!~", "path!~")),
        ("expressions_read_metrics", f"{ALERTS}.2.expr", ("application_status", "status")),
        ("expressions_read_metrics", f"{BOARD}.engines.json", ("vllm:num_", "vllm:nun_")),
    ],
    "broken PromQL": [
        ("expressions_read_metrics", f"{ALERTS}.2.expr", (" <= 2", " <= ")),
        ("expressions_read_metrics", f"{ALERTS}.0.expr", ("[5m]", "[5min]")),
        ("expressions_read_metrics", f"{ALERTS}.1.expr", (" > ", " >> ")),
        ("expressions_read_metrics", f"{ALERTS}.4.expr", ("absent(", "absence(")),
        ("expressions_read_metrics", f"{BOARD}.service.json", ("sum by (", "sum by by (")),
    ],
    "policy: DNS": [
        ("policies_let_through", f"{RAY_POLICY}.egress.1.ports.0.port", 54),
        ("policies_let_through", f"{RAY_POLICY}.egress.1.ports.0.protocol", "TCP"),
        ("policies_let_through", "NetworkPolicy/truthgpt-prefetch:spec.egress.0", REMOVE),
        ("policies_let_through", "NetworkPolicy/truthgpt-prefetch:spec.egress.1", REMOVE),
    ],
    "policy: operator": [
        (
            "policies_let_through",
            f"{RAY_POLICY}.ingress.1.from.0.podSelector.matchLabels",
            {"app": "kuberay-operator"},
        ),
        (
            "policies_let_through",
            f"{RAY_POLICY}.ingress.1.from.0.namespaceSelector.matchLabels",
            {"name": "kuberay-system"},
        ),
        ("policies_let_through", f"{RAY_POLICY}.ingress.1.ports.0.port", 8266),
        ("policies_let_through", f"{RAY_POLICY}.egress.2.ports.1.port", 6444),
        ("policies_hold_off", f"{RAY_POLICY}.ingress.1.from.0.namespaceSelector", {}),
    ],
    "policy: Redis": [
        ("policies_let_through", f"{REDIS_POLICY}.ingress.0.ports.0.port", 6380),
        ("policies_let_through", f"{REDIS_POLICY}.ingress", REMOVE),
        (
            "policies_let_through",
            f"{REDIS_POLICY}.ingress.0.from.0.podSelector.matchLabels",
            {"truthgpt.io/component": "head"},
        ),
        (
            "policies_let_through",
            f"{RAY_POLICY}.egress.3.to.0.podSelector.matchLabels",
            {"truthgpt.io/component": "store"},
        ),
        ("policies_let_through", f"{RAY_POLICY}.egress.3.ports.0.port", 6380),
        ("policies_hold_off", f"{REDIS_POLICY}.ingress.0.from.0.podSelector", {}),
        ("selectors_select", f"{REDIS_POLICY}.podSelector.matchLabels", {"app": "redis"}),
    ],
    "policy: gateway and Prometheus": [
        (
            "policies_let_through",
            f"{RAY_POLICY}.ingress.3.from.0.podSelector.matchLabels",
            {"app": "gateway"},
        ),
        ("policies_hold_off", f"{RAY_POLICY}.ingress.3.from.0.podSelector", REMOVE),
        ("policies_let_through", f"{RAY_POLICY}.ingress.3.ports.0.port", 80),
        ("policies_let_through", f"{RAY_POLICY}.ingress.4.ports.0", REMOVE),
        ("policies_hold_off", f"{RAY_POLICY}.ingress.2.from.0", {"namespaceSelector": {}}),
    ],
    "GPUs in requests and limits": [
        ("sizes_fit", f"{A100_POD}.containers.0.resources.requests", {"nvidia.com/gpu": "2"}),
        ("sizes_fit", f"{A100_POD}.containers.0.resources.limits", {"cpu": "11"}),
    ],
    "larger than a node": [
        ("sizes_fit", f"{A100_POD}.containers.0.resources.requests.memory", "80Gi"),
        ("sizes_fit", f"{A100_POD}.containers.0.resources.requests.cpu", "12"),
        ("sizes_fit", f"{CPU_POD}.containers.0.resources.requests.cpu", "64"),
        ("sizes_fit", f"{HEAD_POD}.containers.0.resources.requests.memory", "96Gi"),
        ("sizes_fit", f"{CPU_POD}.containers.0.resources.limits.ephemeral-storage", "5Gi"),
        ("sizes_fit", f"{CPU_POD}.volumes.2.emptyDir", {}),
    ],
    "empty tag": [
        ("versions_agree", f"{HEAD_POD}.containers.0.image", "truthgpt-serve-head"),
        ("versions_agree", f"{CPU_POD}.containers.0.image", "truthgpt-serve-cpu:"),
        ("versions_agree", f"{A100_POD}.containers.0.image", "truthgpt-serve-cuda:latest"),
        ("versions_agree", f"{REDIS_POD}.containers.0.image", "redis"),
    ],
    "name of an image": [
        ("versions_agree", f"{HEAD_POD}.containers.0.image", "truthgpt-head:0.1.0"),
        ("versions_agree", f"{A100_POD}.containers.0.image", "truthgpt-serve-cpu:0.1.0"),
        ("versions_agree", f"{CPU_POD}.containers.0.image", "registry.test/x/serve-cpu:0.1.0"),
        ("versions_agree", f"{JOB_POD}.containers.0.image", "python:3.11.14"),
    ],
    "Serve's port": [
        ("ports_agree", SERVE_FILE, ("port: 8000", "port: 8080")),
        ("ports_agree", f"{CPU_POD}.containers.0.ports.0.containerPort", 8001),
        ("ports_agree", SERVE_FILE, ("host: 0.0.0.0", "host: 127.0.0.1")),
        ("ports_agree", f"{HEAD_POD}.containers.0.ports.1.containerPort", 8266),
    ],
    "rayVersion": [
        ("versions_agree", "RayService:spec.rayClusterConfig.rayVersion", "2.59.0"),
        ("versions_agree", "RayService:spec.rayClusterConfig.rayVersion", REMOVE),
    ],
    "cache of one node": [
        ("cache_is_shared", "PersistentVolumeClaim:spec.accessModes", ["ReadWriteOnce"]),
        ("cache_is_shared", "PersistentVolumeClaim:spec.accessModes", ["ReadOnlyMany"]),
    ],
    "HF_HOME": [
        (
            "paths_agree",
            f"{JOB_POD}.containers.0.env",
            [{"name": "HF_HOME", "value": "/models/hub"}],
        ),
        ("paths_agree", f"{ENV}.HF_HOME", "/tmp/huggingface"),
        ("paths_agree", f"{JOB_POD}.containers.0.envFrom", []),
        ("paths_agree", f"{JOB_POD}.volumes.3", {"name": "model-cache", "emptyDir": {}}),
    ],
    "/tmp of the autoscaler": [
        (
            "autoscaler_can_write",
            "RayService:spec.rayClusterConfig.autoscalerOptions.volumeMounts",
            [],
        ),
        (
            "autoscaler_can_write",
            "RayService:spec.rayClusterConfig.autoscalerOptions.volumeMounts.0.name",
            "scratch",
        ),
        (
            "autoscaler_can_write",
            "RayService:spec.rayClusterConfig.autoscalerOptions.securityContext",
            {},
        ),
    ],
    "toleration": [
        ("gpu_nodes_agree", f"{A100_POD}.tolerations", REMOVE),
        ("gpu_nodes_agree", f"{A100_POD}.tolerations.0.key", "nvidia.com/gpus"),
        ("gpu_nodes_agree", f"{A100_POD}.tolerations.0.effect", "NoExecute"),
        ("gpu_nodes_agree", f"{A100_POD}.tolerations.0.operator", "Equal"),
    ],
    "label of a node": [
        ("gpu_nodes_agree", f"{A100_TERMS}.0.matchExpressions.0.key", "nvidia.com/product"),
        ("gpu_nodes_agree", f"{A100_TERMS}.1.matchExpressions.0.values", ["nvidia-l4"]),
        ("gpu_nodes_agree", f"{A100_TERMS}.1.matchExpressions.0.operator", "NotIn"),
        ("gpu_nodes_agree", f"{GROUP}.1.labels", {"truthgpt.io/gpu": "a10"}),
        ("gpu_nodes_agree", f"{GROUP}.0.labels", REMOVE),
        ("gpu_nodes_agree", f"{ENV}.TRUTHGPT_CPU_NODE_LABEL", "truthgpt.io/node=cpu"),
    ],
    "label of a spread": [
        (
            "selectors_select",
            f"{CPU_POD}.topologySpreadConstraints.0.labelSelector.matchLabels",
            {"truthgpt.io/component": "worker"},
        ),
        ("selectors_select", f"{CPU_POD}.topologySpreadConstraints.0.labelSelector", REMOVE),
        ("selectors_select", f"{CPU_POD}.topologySpreadConstraints.0.topologyKey", "hostname"),
    ],
    "Redis' log": [
        (
            "redis_is_reached",
            f"{REDIS_POD}.containers.0.command.2",
            ("--appendonly yes", "--appendonly no"),
        ),
        ("redis_is_reached", f"{REDIS_POD}.containers.0.command.2", ("--dir /data", "")),
        (
            "redis_is_reached",
            f"{REDIS_POD}.containers.0.command.2",
            ("--maxmemory 768mb", "--maxmemory 2048mb"),
        ),
        ("redis_is_reached", f"{REDIS_POD}.containers.0.volumeMounts.0.mountPath", "/var/lib"),
    ],
    "delay of a deletion": [
        ("times_agree", "RayService:spec.rayClusterDeletionDelaySeconds", 60),
        ("times_agree", "RayService:spec.rayClusterDeletionDelaySeconds", REMOVE),
        (
            "times_agree",
            SERVE_FILE,
            (
                "import_path: truthgpt_serve.app:router\n    args: {}",
                "import_path: truthgpt_serve.app:router\n    args: {request_timeout_s: 900}",
            ),
        ),
        ("redis_is_reached", "RayService:metadata.annotations", REMOVE),
        (
            "redis_is_reached",
            "RayService:metadata.annotations",
            {"ray.io/gcs-ft-deletion-timeout": "400"},
        ),
    ],
    "path of a mount": [
        ("paths_agree", f"{CPU_POD}.containers.0.volumeMounts.0.mountPath", "/opt/truthgpt/models"),
        ("paths_agree", f"{A100_POD}.containers.0.volumeMounts.1.mountPath", "/cache"),
        ("paths_agree", f"{HEAD_POD}.containers.0.volumeMounts.3.mountPath", "/keys"),
        ("paths_agree", f"{ENV}.TRUTHGPT_KEYS_FILE", "/opt/keys/keys.yaml"),
        ("paths_agree", f"{ENV}.TRUTHGPT_KEYS_FILE", REMOVE),
        ("paths_agree", f"{ENV}.TRUTHGPT_CONFIG_DIR", "/opt/truthgpt"),
        ("paths_agree", f"{JOB_POD}.containers.0.volumeMounts.2.mountPath", "/models"),
    ],
    "GPUs that no group has": [
        (
            "models_fit_a_group",
            SERVE_FILE,
            (
                "config: models/echo.yaml",
                "config: models/echo.yaml\n      hardware: {gpus: 16}",
            ),
        ),
        (
            "models_fit_a_group",
            SERVE_FILE,
            (
                "config: models/echo.yaml",
                "config: models/echo.yaml\n      hardware: {gpus: 1,"
                " label_selector: {truthgpt.io/gpu: t4}}",
            ),
        ),
        ("models_fit_a_group", SERVE_FILE, ("models/echo.yaml", "models/ecco.yaml")),
        (
            "gpu_nodes_agree",
            f"{A100_POD}.containers.0.resources.limits",
            {"cpu": "11", "memory": "72Gi", "nvidia.com/gpu": "2"},
        ),
    ],
    "rights": [
        (
            "pods_are_restricted",
            "Namespace:metadata.labels",
            {"pod-security.kubernetes.io/enforce": "privileged"},
        ),
        ("pods_are_restricted", f"{CPU_POD}.containers.0.securityContext.capabilities", REMOVE),
        ("pods_are_restricted", f"{HEAD_POD}.securityContext.seccompProfile", REMOVE),
        ("pods_are_restricted", f"{REDIS_POD}.securityContext.fsGroup", 1000),
        ("pods_are_restricted", f"{JOB_POD}.securityContext.runAsUser", 1001),
        ("pods_are_restricted", f"{A100_POD}.automountServiceAccountToken", True),
        ("pods_are_restricted", f"{A100_POD}.imagePullSecrets", REMOVE),
    ],
    "volumes": [
        ("volumes_are_whole", "StatefulSet:spec.volumeClaimTemplates.0.metadata.name", "store"),
        ("volumes_are_whole", f"{JOB_POD}.volumes.0.configMap", REMOVE),
        ("volumes_are_whole", "PersistentVolumeClaim:spec.resources.requests.storage", "200"),
    ],
    "commands and probes": [
        ("commands_and_probes_fit", f"{JOB_POD}.containers.0.command.1", "/opt/prefetch.py"),
        ("commands_and_probes_fit", f"{JOB_POD}.containers.0.volumeMounts.1.mountPath", "/serve"),
        ("commands_and_probes_fit", f"{JOB_POD}.restartPolicy", "Always"),
        ("commands_and_probes_fit", f"{REDIS_POD}.containers.0.readinessProbe", REMOVE),
        (
            "commands_and_probes_fit",
            f"{REDIS_POD}.containers.0.livenessProbe.tcpSocket.port",
            "db",
        ),
        ("commands_and_probes_fit", "StatefulSet:spec.replicas", 2),
    ],
    "objects of alerts": [
        ("expressions_name_objects", "PodMonitor/truthgpt-ray:metadata.name", "ray"),
        ("expressions_name_objects", f"{ALERTS}.7.expr", ("truthgpt-redis", "redis")),
        ("expressions_name_objects", f"{ALERTS}.5.expr", ('"truthgpt"', '"truth"')),
        ("expressions_name_objects", f"{ALERTS}.12.expr", "up == 0"),
        ("alerts_are_whole", f"{ALERTS}.4", REMOVE),
        ("alerts_are_whole", f"{ALERTS}.5.labels", REMOVE),
        ("alerts_are_whole", f"{ALERTS}.6.annotations.description", ""),
    ],
    "scraped twice or never": [
        (
            "exporters_are_scraped_once",
            "PodMonitor/truthgpt-ray:spec.podMetricsEndpoints.1",
            REMOVE,
        ),
        (
            "exporters_are_scraped_once",
            "PodMonitor/truthgpt-engines:spec.selector.matchLabels",
            {"truthgpt.io/component": "ray"},
        ),
        (
            "scrapes_find_their_targets",
            "PodMonitor/truthgpt-ray:spec.podMetricsEndpoints.0.relabelings.0.sourceLabels.0",
            "__meta_kubernetes_pod_label_ray_cluster",
        ),
    ],
    "head": [
        ("head_serves_no_client", "RayService:spec.excludeHeadPodFromServeSvc", False),
        ("head_serves_no_client", f"{HEAD}.rayStartParams", {}),
        ("head_serves_no_client", f"{A100_POD}.containers.0.envFrom.2", REMOVE),
        ("head_serves_no_client", FT, REMOVE),
    ],
    "too open": [
        ("policies_hold_off", f"{RAY_POLICY}.egress.0.to", REMOVE),
        ("policies_hold_off", f"{RAY_POLICY}.egress.2.ports.0.port", REMOVE),
        ("policies_hold_off", f"{RAY_POLICY}.egress.3.to.0.podSelector", {}),
        ("policies_hold_off", f"{RAY_POLICY}.ingress.1.from.0.podSelector", {}),
        ("policies_hold_off", "NetworkPolicy/truthgpt-prefetch:spec.egress.1.ports", REMOVE),
    ],
    "budget": [
        ("disruption_budget", "PodDisruptionBudget/truthgpt-gpu-a100:spec.selector", {}),
        (
            "disruption_budget",
            "PodDisruptionBudget/truthgpt-gpu-l4:spec.selector.matchLabels",
            {"ray.io/group": "l4"},
        ),
        (
            "disruption_budget",
            "PodDisruptionBudget/truthgpt-workers:spec.unhealthyPodEvictionPolicy",
            REMOVE,
        ),
    ],
}
ROWS = [(kind, *row) for kind, rows in MISTAKES.items() for row in rows]


def test_every_component_together_keeps_the_rules() -> None:
    assert faults(all_components()) == {}


@pytest.mark.parametrize(
    ("rule", "place", "value"),
    [row[1:] for row in ROWS],
    ids=[f"{row[0]}-{index}" for index, row in enumerate(ROWS)],
)
def test_mistakes_between_objects_are_found(rule: str, place: str, value: Any) -> None:
    assert rule in faults(spoil(all_components(), place, value))


def test_each_rule_finds_two_mistakes() -> None:
    counts = {rule.__name__: 0 for rule in RULES}
    for _, rule, _, _ in ROWS:
        counts[rule] += 1
    names = [rule.__name__ for rule in RULES]
    new = RULES[
        names.index("one_namespace") : names.index("parameters_fit")
    ]  # then test_containers
    assert {rule.__name__: counts[rule.__name__] for rule in new if counts[rule.__name__] < 2} == {}
