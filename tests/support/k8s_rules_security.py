"""Rules about what a Pod may do and what it is made of: users, rights, volumes, probes.

Each takes manifests and returns its faults.
"""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any

from tests.support.k8s_links import OWN_IMAGE, Pod, pods, quantity, ray_pods
from tests.support.k8s_manifests import Manifest, cluster_spec, one

VOLUME_SOURCES = ("configMap", "secret", "emptyDir", "persistentVolumeClaim")
PROFILE = "pod-security.kubernetes.io"
LEVELS = ("privileged", "baseline", "restricted")
OWN_USER = 1000
"""The user of the images, k8s/Dockerfile."""


def pods_are_restricted(manifests: list[Manifest]) -> Iterator[str]:
    """Pods fit Kubernetes' profile `restricted`, and only the head may ask the API server."""
    strategy = one(manifests, "RayService")["spec"].get("upgradeStrategy") or {}
    has_gateway = any(m["kind"] == "Gateway" for m in manifests) or "Incremental" in str(
        strategy.get("type")
    )
    for namespace in (m for m in manifests if m["kind"] == "Namespace"):
        labels = namespace["metadata"].get("labels", {})
        enforced = labels.get(f"{PROFILE}/enforce")
        # Istio's Gateway Pods, which run beside ours, do not fit `restricted`.
        if enforced != ("baseline" if has_gateway else "restricted"):
            yield f"the namespace enforces {enforced}"
        if labels.get(f"{PROFILE}/warn") != "restricted":
            yield f"the namespace warns of {labels.get(f'{PROFILE}/warn')}"
        yield from _label_faults(labels)
    for pod in pods(manifests):
        yield from (f"{pod.name}: {fault}" for fault in _pod_faults(pod))
        for container in [*pod.spec["containers"], *pod.spec.get("initContainers", [])]:
            context = container.get("securityContext", {})
            if context.get("allowPrivilegeEscalation") is not False:
                yield f"{pod.name}: {container['name']} may get more rights"
            if context.get("capabilities") != {"drop": ["ALL"]}:
                yield f"{pod.name}: capabilities are {context.get('capabilities')}"
            if context.get("privileged") or context.get("runAsUser") == 0:
                yield f"{pod.name}: {container['name']} runs as root"


def _label_faults(labels: dict[str, str]) -> Iterator[str]:
    """Kubernetes passes over a label of the namespace that it does not know."""
    modes = [f"{PROFILE}/{mode}" for mode in ("enforce", "warn", "audit")]
    known = [*modes, *(f"{mode}-version" for mode in modes)]
    for key, value in labels.items():
        if key not in known and get_close_matches(key, known, 1, 0.8):
            yield f"the namespace's label {key} is unknown; known are {', '.join(known)}"
        if key in modes and value not in LEVELS:
            yield f"the namespace's label {key} is {value}, none of {', '.join(LEVELS)}"


def _pod_faults(pod: Pod) -> Iterator[str]:
    spec, context = pod.spec, pod.spec.get("securityContext", {})
    user, group = context.get("runAsUser"), context.get("runAsGroup")
    if context.get("seccompProfile") != {"type": "RuntimeDefault"}:
        yield f"seccompProfile is {context.get('seccompProfile')}"
    if not user or not group or group != context.get("fsGroup"):
        yield f"user {user}, group {group}, group of volumes {context.get('fsGroup')}"
    is_own = spec["containers"][0]["image"].rpartition("/")[2].startswith(OWN_IMAGE)
    if is_own and (user, group) != (OWN_USER, OWN_USER):
        yield f"the image's user is {OWN_USER}, not {user}"
    if context.get("fsGroupChangePolicy") != "OnRootMismatch":
        yield "the owners of a large cache are set anew at each start"
    is_head = pod.labels.get("ray.io/group") == "headgroup"
    if spec.get("automountServiceAccountToken") is not is_head:
        yield f"automountServiceAccountToken is {spec.get('automountServiceAccountToken')}"
    if spec.get("enableServiceLinks") is not False:
        yield "variables of Services are put into its environment"
    if not spec.get("imagePullSecrets"):
        yield "no imagePullSecrets"
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(key):
            yield f"{key} is on"


def volumes_are_whole(manifests: list[Manifest]) -> Iterator[str]:
    """Each volume has one source, each mount a volume, each claim a size and a mode."""
    for pod in pods(manifests):
        volumes = {volume["name"] for volume in pod.spec.get("volumes", [])}
        for volume in pod.spec.get("volumes", []):
            if len([key for key in VOLUME_SOURCES if key in volume]) != 1:
                yield f"{pod.name}: volume {volume['name']} has {sorted(volume)}"
        for template in _claim_templates(manifests, pod):
            volumes.add(template.get("metadata", {}).get("name"))
        for container in pod.spec["containers"]:
            for mount in container.get("volumeMounts", []):
                if mount["name"] not in volumes:
                    yield f"{pod.name}: there is no volume {mount['name']}"
    claims = [m["spec"] for m in manifests if m["kind"] == "PersistentVolumeClaim"]
    claims += [
        t.get("spec", {}) for pod in pods(manifests) for t in _claim_templates(manifests, pod)
    ]
    for claim in claims:
        size = claim.get("resources", {}).get("requests", {}).get("storage", 0)
        modes = claim.get("accessModes", [])
        if (
            not quantity(size) >= 2**30
            or not modes
            or not set(modes) <= {"ReadWriteOnce", "ReadWriteMany"}
        ):
            yield f"a claim of {size}, {modes}"


def _claim_templates(manifests: list[Manifest], pod: Pod) -> Iterator[dict[str, Any]]:
    for manifest in manifests:
        if f"{manifest['kind']}/{manifest['metadata']['name']}" == pod.name:
            yield from manifest["spec"].get("volumeClaimTemplates", [])


def commands_and_probes_fit(manifests: list[Manifest]) -> Iterator[str]:
    """Commands name files that are mounted; probes are there, and ask ports that are there."""
    files = {
        (manifest["metadata"]["name"], key)
        for manifest in manifests
        if manifest["kind"] == "ConfigMap"
        for key in manifest.get("data", {})
    }
    for pod in pods(manifests):
        kind = pod.name.partition("/")[0]
        if kind == "Job":
            yield from (f"{pod.name}: {fault}" for fault in _job_faults(pod, files))
        elif kind in ("StatefulSet", "Deployment"):
            yield from (f"{pod.name}: {fault}" for fault in _server_faults(pod))
    for manifest in manifests:
        name, spec = manifest["metadata"]["name"], manifest.get("spec", {})
        if manifest["kind"] == "Job" and not spec.get("ttlSecondsAfterFinished"):
            yield f"Job {name} stays, and keeps the next one from being made"
        if manifest["kind"] == "StatefulSet" and spec.get("replicas") != 1:
            yield f"StatefulSet {name}: {spec.get('replicas')} replicas, each with its own data"


def _job_faults(pod: Pod, files: set[tuple[str, str]]) -> Iterator[str]:
    there = set(_mounted_files(pod, files))
    command = pod.spec["containers"][0].get("command", [])
    missing = [word for word in command if word.startswith("/") and word not in there]
    is_program = command[:1] == ["python"] and len(command) == 3 and command[1].endswith(".py")
    if not is_program or missing:
        yield f"runs {command}"
    if pod.spec.get("restartPolicy") not in ("OnFailure", "Never"):
        yield f"restartPolicy is {pod.spec.get('restartPolicy')}"


def _server_faults(pod: Pod) -> Iterator[str]:
    container = pod.spec["containers"][0]
    if container.get("command", [])[:2] != ["sh", "-c"]:
        yield f"runs {container.get('command')}"
    for name in ("readinessProbe", "livenessProbe"):
        port = container.get(name, {}).get("tcpSocket", {}).get("port")
        if port not in {*pod.ports, *pod.ports.values()}:
            yield f"{name} asks port {port}"


def _mounted_files(pod: Pod, files: set[tuple[str, str]]) -> Iterator[str]:
    sources = {v["name"]: v.get("configMap", {}).get("name") for v in pod.spec["volumes"]}
    for mount in pod.spec["containers"][0]["volumeMounts"]:
        for name, key in files:
            if sources.get(mount["name"]) == name:
                yield f"{mount['mountPath']}/{key}"


def autoscaler_can_write(manifests: list[Manifest]) -> Iterator[str]:
    """The autoscaler's container, beside the head with its volumes, has a /tmp and no more."""
    service = one(manifests, "RayService")
    options = cluster_spec(service).get("autoscalerOptions") or {}
    volumes = {volume["name"]: volume for volume in ray_pods(manifests)[0].spec["volumes"]}
    mounts = {mount["mountPath"]: mount["name"] for mount in options.get("volumeMounts", [])}
    if "emptyDir" not in volumes.get(mounts.get("/tmp", ""), {}):
        yield "the autoscaler has no emptyDir on /tmp"
    context = options.get("securityContext", {})
    if not context.get("readOnlyRootFilesystem") or context.get("allowPrivilegeEscalation", True):
        yield "the autoscaler has more rights than the head"
    if context.get("capabilities") != {"drop": ["ALL"]}:
        yield f"the autoscaler's capabilities are {context.get('capabilities')}"
    resources = options.get("resources", {})
    if not {"cpu", "memory"} <= {*resources.get("requests", {})} or "memory" not in resources.get(
        "limits", {}
    ):
        yield "the autoscaler has no requests or no limit"
