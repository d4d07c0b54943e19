"""Rules about Pods and what is around them: probes, endings, budgets, file systems, network.

Each takes manifests and returns its faults; `k8s_rules_ray` has those about Ray itself.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.support.k8s_links import pods, selects
from tests.support.k8s_manifests import (
    Manifest,
    cluster_spec,
    environment,
    groups,
    one,
    pod_specs,
    ray_container,
)

CLOSED_PORTS = (6379, 10001, 52365, 8404, 9101, *range(30000, 31001), *range(40000, 41001))
"""Ray's own, HAProxy's statistics and metrics, and replicas' HTTP and gRPC."""
ZONE = "topology.kubernetes.io/zone"
COMPONENT = "truthgpt.io/component"
OURS = {"podSelector": {"matchLabels": {COMPONENT: "ray"}}}


def operator_probes(manifests: list[Manifest]) -> Iterator[str]:
    """Probes are the operator's: its own know the proxy and Ray's agent."""
    for name, group in groups(one(manifests, "RayService")):
        for probe in ("livenessProbe", "readinessProbe"):
            if probe in ray_container(group):
                yield f"{name}: {probe} replaces KubeRay's"


def graceful_shutdown(manifests: list[Manifest]) -> Iterator[str]:
    """Kubernetes waits longer than Ray drains; nothing ends Ray before it."""
    for name, group in groups(one(manifests, "RayService")):
        container = ray_container(group)
        drain_s = environment(manifests, container).get("RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S")
        grace_s = group["template"]["spec"].get("terminationGracePeriodSeconds", 30)
        if drain_s is None or grace_s < float(drain_s) + 30:
            yield f"{name}: Ray drains {drain_s} s, Kubernetes waits {grace_s} s"
        if "lifecycle" in container:
            yield f"{name}: a preStop hook would end Ray before it drained"


def disruption_budget(manifests: list[Manifest]) -> Iterator[str]:
    """Integers that leave something to drain, over all workers; GPU groups have their own."""
    specs = cluster_spec(one(manifests, "RayService"))["workerGroupSpecs"]
    budgets = [manifest for manifest in manifests if manifest["kind"] == "PodDisruptionBudget"]
    if not budgets and sum(group["minReplicas"] for group in specs) > 1:
        yield "several workers and no PodDisruptionBudget"
    covered = set()
    for budget in budgets:
        spec = budget["spec"]
        least = spec.get("minAvailable")
        chosen = [group for group in specs if selects(spec["selector"], _worker_labels(group))]
        covered |= {group["groupName"] for group in chosen}
        workers = sum(group["minReplicas"] or group["maxReplicas"] for group in chosen)
        if type(least) is not int or "maxUnavailable" in spec:
            yield f"minAvailable is {least!r}: only an integer works over a RayCluster's Pods"
        elif least >= workers or least > max(1, sum(g["minReplicas"] for g in chosen) - 1):
            yield f"minAvailable {least} of {workers} workers lets no node drain"
        if len(chosen) > 1:
            yield f"one budget for {len(chosen)} groups lets one group drain to nothing"
        if spec.get("unhealthyPodEvictionPolicy") != "AlwaysAllow":
            yield "a Pod that never gets ready would keep its node from draining"
    if budgets:
        for group in specs:
            if group["groupName"] not in covered:
                yield f"no budget selects {group['groupName']}"


def _worker_labels(group: Manifest) -> dict[str, str]:
    added = {"ray.io/node-type": "worker", "ray.io/group": group["groupName"]}
    return {**group["template"]["metadata"]["labels"], **added}


def zones_are_required(manifests: list[Manifest]) -> Iterator[str]:
    """A spread over zones is a condition: as a wish, one zone may have all Pods."""
    for name, spec in pod_specs(manifests):
        for spread in spec.get("topologySpreadConstraints", []):
            wish = spread.get("whenUnsatisfiable")
            if spread.get("topologyKey") == ZONE and wish != "DoNotSchedule":
                yield f"{name}: its Pods may all be in one zone: whenUnsatisfiable is {wish}"


def writable_folders(manifests: list[Manifest]) -> Iterator[str]:
    """A read-only root file system needs an emptyDir on /tmp; everything runs unprivileged."""
    for name, spec in pod_specs(manifests):
        volumes = {volume["name"]: volume for volume in spec.get("volumes", [])}
        if not spec.get("securityContext", {}).get("runAsNonRoot"):
            yield f"{name}: may run as root"
        for container in spec["containers"]:
            context = container.get("securityContext", {})
            if context.get("allowPrivilegeEscalation") is not False:
                yield f"{name}: allowPrivilegeEscalation"
            if not context.get("readOnlyRootFilesystem"):
                yield f"{name}: readOnlyRootFilesystem is off"
            mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
            if "emptyDir" not in volumes.get(mounts.get("/tmp", ""), {}):
                yield f"{name}: no emptyDir on /tmp"


def references_resolve(manifests: list[Manifest]) -> Iterator[str]:
    """ConfigMaps, claims and volumes that Pods name are there; hashes and prefixes reached them."""
    there = {(m["kind"], m["metadata"]["name"]) for m in manifests}
    for name, spec in pod_specs(manifests):
        for reference in [*_named_by_volumes(spec), *_named_by_variables(spec)]:
            if reference not in there:
                yield f"{name}: there is no {' '.join(reference)}"
        volumes = {volume["name"] for volume in spec.get("volumes", [])}
        for container in spec["containers"]:
            for mount in container.get("volumeMounts", []):
                if mount["name"] not in volumes and not name.startswith("StatefulSet"):
                    yield f"{name}: there is no volume {mount['name']}"


def named_configs(spec: Manifest) -> Iterator[str]:
    """Yields the ConfigMaps that a Pod's volumes and variables name."""
    for kind, name in (*_named_by_volumes(spec), *_named_by_variables(spec)):
        if kind == "ConfigMap":
            yield name


def _named_by_volumes(spec: Manifest) -> Iterator[tuple[str, str]]:
    for volume in spec.get("volumes", []):
        if "configMap" in volume:
            yield "ConfigMap", volume["configMap"]["name"]
        if "persistentVolumeClaim" in volume:
            yield "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]


def _named_by_variables(spec: Manifest) -> Iterator[tuple[str, str]]:
    for container in spec["containers"]:
        for source in container.get("envFrom", []):
            if "configMapRef" in source:
                yield "ConfigMap", source["configMapRef"]["name"]
            elif not source["secretRef"].get("optional"):
                yield "Secret", source["secretRef"]["name"]


def network_is_closed(manifests: list[Manifest]) -> Iterator[str]:
    """Every Pod is under a policy, and only Ray's Pods reach the ports that bypass the router."""
    policies = [manifest for manifest in manifests if manifest["kind"] == "NetworkPolicy"]
    selected = {tuple(p["spec"]["podSelector"]["matchLabels"].items()) for p in policies}
    components = {pod.labels.get(COMPONENT) for pod in pods(manifests)}
    for component in sorted({"ray", *filter(None, components)}):
        if ((COMPONENT, component),) not in selected:
            yield f"no policy for {component}"
    for policy in policies:
        name = policy["metadata"]["name"]
        if set(policy["spec"]["policyTypes"]) != {"Ingress", "Egress"}:
            yield f"{name}: policyTypes"
        for rule in policy["spec"].get("ingress", []):
            senders = rule.get("from") or []
            if not senders:
                yield f"{name}: anybody may come in"
            ports = [port["port"] for port in rule.get("ports", [])]
            is_open = not ports or any(port in CLOSED_PORTS for port in ports)
            if is_open and senders != [OURS]:
                yield f"{name}: {senders} reaches ports {ports or 'all'}"
