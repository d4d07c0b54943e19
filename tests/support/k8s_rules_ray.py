"""What KubeRay 1.7.0 refuses or does wrong in a RayService, and no schema says.

Each takes manifests and returns its faults. The rules are those of the operator's
`ray-operator/controllers/ray/utils/validation.go` and `common/service.go`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from tests.support.k8s_links import quantity
from tests.support.k8s_manifests import (
    Manifest,
    cluster_spec,
    environment,
    groups,
    one,
    ray_container,
)

DNS_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
MAX_NAME = 53 - 6
"""53 for a RayCluster, whose Service's name ends in -serve-svc; 6 that the operator appends."""
RAY_START_RESOURCES = ("num-cpus", "num-gpus", "memory", "resources")
OLDEST_RAY_WITH_TOKENS = (2, 52, 0)
SERVE_PORT = 8000
HAPROXY_VARIABLES = (
    "RAY_SERVE_ENABLE_HA_PROXY",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED",
    "RAY_SERVE_HAPROXY_BINARY_PATH",
)


def name_fits(manifests: list[Manifest]) -> Iterator[str]:
    """Name length and form of the RayService."""
    name = one(manifests, "RayService")["metadata"]["name"]
    if len(name) > MAX_NAME:
        yield f"name {name!r} is longer than {MAX_NAME}"
    if not DNS_LABEL.fullmatch(name):
        yield f"name {name!r} is not a DNS label"


def serve_port_on_head(manifests: list[Manifest]) -> Iterator[str]:
    """Without the head's port `serve` there is no Service; workers are probed at theirs."""
    service = one(manifests, "RayService")
    for name, group in groups(service):
        ports = {port["name"]: port["containerPort"] for port in ray_container(group)["ports"]}
        if ports.get("serve") != SERVE_PORT:
            yield f"{name}: port serve is {ports.get('serve')}"
        if ports.get("metrics") != 8080:
            yield f"{name}: port metrics is {ports.get('metrics')}"
    head_service = cluster_spec(service)["headGroupSpec"].get("headService") or {}
    if head_service.get("metadata", {}).get("name"):
        yield "headService.metadata.name must not be set in a RayService"


def resources_in_one_place(manifests: list[Manifest]) -> Iterator[str]:
    """`resources` and `rayStartParams` exclude each other; labels are never a parameter."""
    for name, group in groups(one(manifests, "RayService")):
        given = [key for key in RAY_START_RESOURCES if key in group.get("rayStartParams", {})]
        if given and group.get("resources"):
            yield f"{name}: resources are also in rayStartParams ({', '.join(given)})"
        if "labels" in group.get("rayStartParams", {}):
            yield f"{name}: rayStartParams.labels is not supported"


def replicas_in_order(manifests: list[Manifest]) -> Iterator[str]:
    """0 <= minReplicas <= replicas <= maxReplicas, and names of groups differ."""
    specs = cluster_spec(one(manifests, "RayService"))["workerGroupSpecs"]
    names = [group["groupName"] for group in specs]
    if len(set(names)) != len(names):
        yield f"groups have one name: {names}"
    for group in specs:
        low, now, high = group["minReplicas"], group["replicas"], group["maxReplicas"]
        if not 0 <= low <= now <= high:
            yield f"{group['groupName']}: min {low}, replicas {now}, max {high}"


def upgrade_steps(manifests: list[Manifest]) -> Iterator[str]:
    """Step at most the surge, both shares; an incremental upgrade needs the autoscaler."""
    service = one(manifests, "RayService")
    strategy = service["spec"].get("upgradeStrategy") or {}
    kind = strategy.get("type", "NewCluster")
    if kind not in ("NewCluster", "NewClusterWithIncrementalUpgrade", "None"):
        yield f"upgradeStrategy.type {kind!r} is unknown"
    if kind != "NewClusterWithIncrementalUpgrade":
        return
    options = strategy.get("clusterUpgradeOptions")
    if options is None:
        yield "an incremental upgrade needs clusterUpgradeOptions"
        return
    if not options.get("gatewayClassName"):
        yield "an incremental upgrade needs a gatewayClassName"
    surge, step = options.get("maxSurgePercent", 100), options.get("stepSizePercent", -1)
    if not 0 <= step <= surge <= 100:
        yield f"stepSizePercent {step}, maxSurgePercent {surge}"
    if options.get("intervalSeconds", 0) <= 0:
        yield "intervalSeconds must be above 0"
    if not cluster_spec(service).get("enableInTreeAutoscaling"):
        yield "an incremental upgrade needs enableInTreeAutoscaling"
    if any(manifest["kind"] == "HTTPRoute" for manifest in manifests):
        yield "the operator's own route replaces the Service that this HTTPRoute names"


def autoscaler_v2(manifests: list[Manifest]) -> Iterator[str]:
    """Version 2 by its field only, Pods that never restart, no variable of the operator's."""
    spec = cluster_spec(one(manifests, "RayService"))
    options = spec.get("autoscalerOptions") or {}
    if not spec.get("enableInTreeAutoscaling") or options.get("version") != "v2":
        yield "autoscaler v2 is off"
    for name, group in groups(one(manifests, "RayService")):
        if group["template"]["spec"].get("restartPolicy", "Never") != "Never":
            yield f"{name}: restartPolicy must be Never or unset"
        if "RAY_enable_autoscaler_v2" in environment(manifests, ray_container(group)):
            yield f"{name}: RAY_enable_autoscaler_v2 is the operator's to set"
        if group.get("idleTimeoutSeconds", 0) < 0:
            yield f"{name}: idleTimeoutSeconds is below 0"
    sizes = options.get("resources", {})
    for key, asked in sizes.get("requests", {}).items():
        if quantity(asked) > quantity(sizes.get("limits", {}).get(key, asked)):
            yield f"the autoscaler's {key} is {asked} in requests, above its limit"
    if options.get("idleTimeoutSeconds", 0) < 0:
        yield "autoscalerOptions.idleTimeoutSeconds is below 0"
    names = [entry["name"] for entry in options.get("env", [])]
    if "KUBERAY_GEN_AUTOSCALER_START_CMD" in names:
        yield "KUBERAY_GEN_AUTOSCALER_START_CMD is the operator's to set"


def token_authentication(manifests: list[Manifest]) -> Iterator[str]:
    """Tokens are on, for a Ray that has them, and no variable of a Pod switches them off."""
    service = one(manifests, "RayService")
    spec = cluster_spec(service)
    options = spec.get("authOptions") or {}
    if options.get("mode") != "token":
        yield "authOptions.mode is not token"
    if options.get("enableK8sTokenAuth"):
        yield "enableK8sTokenAuth is not supported for a RayService"
    version = tuple(map(int, re.findall(r"\d+", str(spec.get("rayVersion", "0")))))
    if version < OLDEST_RAY_WITH_TOKENS:
        yield f"rayVersion {spec.get('rayVersion')} has no tokens"
    for name, group in groups(service):
        mode = environment(manifests, ray_container(group)).get("RAY_AUTH_MODE", "token")
        if mode != "token":
            yield f"{name}: RAY_AUTH_MODE is {mode}"


def redis_in_one_place(manifests: list[Manifest]) -> Iterator[str]:
    """Redis is named by gcsFaultToleranceOptions only, not by variables or parameters."""
    service = one(manifests, "RayService")
    spec = cluster_spec(service)
    head = spec["headGroupSpec"]
    names = {entry["name"] for entry in ray_container(head).get("env", [])}
    names |= environment(manifests, ray_container(head)).keys()
    for variable in ("RAY_REDIS_ADDRESS", "REDIS_PASSWORD", "REDIS_USERNAME"):
        if variable in names:
            yield f"{variable} of the head belongs to gcsFaultToleranceOptions"
    for parameter in ("redis-password", "redis-username"):
        if parameter in head.get("rayStartParams", {}):
            yield f"rayStartParams.{parameter} belongs to gcsFaultToleranceOptions"
    annotations = service["metadata"].get("annotations", {})
    if "gcsFaultToleranceOptions" in spec and "ray.io/ft-enabled" in annotations:
        yield "ray.io/ft-enabled and gcsFaultToleranceOptions exclude each other"


def feature_gates(manifests: list[Manifest]) -> Iterator[str]:
    """Nothing that the operator refuses unless a gate is open that is closed by default."""
    spec = cluster_spec(one(manifests, "RayService"))
    for key in ("networkPolicy", "tlsOptions", "historyServerOptions"):
        if key in spec:
            yield f"{key} needs a feature gate that is closed by default"


def haproxy_everywhere(manifests: list[Manifest]) -> Iterator[str]:
    """HAProxy's variables are the same on every Pod of Ray's, because each node runs one."""
    service = one(manifests, "RayService")
    found = {name: environment(manifests, ray_container(group)) for name, group in groups(service)}
    for variable in HAPROXY_VARIABLES:
        for name, variables in found.items():
            if not variables.get(variable):
                yield f"{name}: {variable} is not set"
    # The head, which has no replica, ends sooner.
    own = {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"}
    plain = ({k: v for k, v in variables.items() if k not in own} for variables in found.values())
    if len({tuple(sorted(variables.items())) for variables in plain}) > 1:
        yield "groups have different environments"
    if re.search(r"^proxy_location: (?!EveryNode)", service["spec"]["serveConfigV2"], re.M):
        yield "proxy_location must be EveryNode"
