"""Rules about what containers say: parameters of Ray, variables, ports, rights.

Each takes manifests and returns its faults.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import Any

from tests.support.k8s_links import Pod, gpus_of, pods, quantity, ray_pods, variables
from tests.support.k8s_manifests import ROOT, Manifest, cluster_spec, groups, one, ray_container
from tests.support.k8s_promql import source_text

PARAMETER_PORTS = {
    "port": "gcs-server",
    "dashboard-port": "dashboard",
    "metrics-export-port": "metrics",
}
LEAST_MEMORY_GIB = 1
OWN_RIGHTS = {"allowPrivilegeEscalation", "readOnlyRootFilesystem", "capabilities"}
"""What a container's `securityContext` may say; all else is the Pod's."""
LONGEST_PORT_NAME = 15
HUB_FOLDERS = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "TRANSFORMERS_CACHE")
PROGRAM = "/opt/truthgpt/venv/bin/truthgpt-haproxy"
"""Of the images, k8s/Dockerfile."""
DOWNLOAD_S = 3600
"""The least that a download of large weights needs."""


def parameters_fit(manifests: list[Manifest]) -> Iterator[str]:
    """`rayStartParams` are options of `ray start`, and say what the containers say."""
    for name, group in groups(one(manifests, "RayService")):
        container, given = ray_container(group), group.get("rayStartParams", {})
        yield from (f"{name}: {fault}" for fault in _option_faults(container, given))
        yield from (f"{name}: {fault}" for fault in _size_faults(container, given))
        if container["name"] != ("ray-head" if name == "headgroup" else "ray-worker"):
            yield f"{name}: KubeRay takes {container['name']}, the first container, for Ray's"
        if container.get("command") or container.get("args"):
            yield f"{name}: KubeRay writes the command of Ray's container"
        if "startupProbe" in container:
            yield f"{name}: startupProbe holds KubeRay's probes back"
    if cluster_spec(one(manifests, "RayService")).get("suspend"):
        yield "the cluster is suspended"


def _option_faults(container: dict[str, Any], given: dict[str, str]) -> Iterator[str]:
    ports = {port["name"]: str(port["containerPort"]) for port in container["ports"]}
    for key, value in given.items():
        if key not in start_options():
            yield f"ray start has no --{key}"
        own = ports.get(PARAMETER_PORTS.get(key, ""))
        if key in PARAMETER_PORTS and own != value:
            yield f"--{key} is {value}, its container port {own}"
    if given.get("dashboard-host", "0.0.0.0") != "0.0.0.0":
        yield f"the operator does not reach a dashboard at {given['dashboard-host']}"


def _size_faults(container: dict[str, Any], given: dict[str, str]) -> Iterator[str]:
    limits = container["resources"].get("limits", {})
    store, memory = given.get("object-store-memory", 0), limits.get("memory", "inf")
    if memory != "inf" and quantity(store) > 0.5 * quantity(memory):
        yield "--object-store-memory is more than half of its memory"
    gpus = sum(quantity(n) for key, n in limits.items() if key.startswith("nvidia.com/"))
    if float(given.get("num-gpus", gpus)) != gpus:
        yield f"--num-gpus is {given['num-gpus']}, its limit {gpus:g}"


@functools.cache
def start_options() -> set[str]:
    """Returns the options of `ray start`, without their dashes."""
    from ray.scripts.scripts import start

    return {
        name.removeprefix("--")
        for option in start.params
        for name in (*option.opts, *option.secondary_opts)
    }


def containers_are_plain(manifests: list[Manifest]) -> Iterator[str]:
    """Ports have names and numbers of their own, TCP; mounts have folders; the Pod gives rights."""
    for pod in pods(manifests):
        for container in [*pod.spec["containers"], *pod.spec.get("initContainers", [])]:
            yield from (f"{pod.name}: {fault}" for fault in _plain_faults(container))
        if "sysctls" in pod.spec.get("securityContext", {}):
            yield f"{pod.name}: sysctls, which `restricted` refuses or a node must allow"
        if pod.spec.get("dnsPolicy", "ClusterFirst") != "ClusterFirst":
            yield f"{pod.name}: dnsPolicy {pod.spec['dnsPolicy']} knows no name of the cluster"
        yield from (f"{pod.name}: {fault}" for fault in _memory_faults(pod))


def _plain_faults(container: dict[str, Any]) -> Iterator[str]:
    ports, mounts = container.get("ports", []), container.get("volumeMounts", [])
    environment = container.get("env", [])
    for key, entries in (
        ("name", ports),
        ("containerPort", ports),
        ("mountPath", mounts),
        ("name", environment),
    ):
        values = [entry.get(key) for entry in entries]
        if len(set(values)) != len(values):
            yield f"the same {key} twice: {values}"
    for port in ports:
        if len(port.get("name", "")) > LONGEST_PORT_NAME:
            yield f"port {port['name']} is longer than {LONGEST_PORT_NAME}"
        if port.get("protocol", "TCP") != "TCP" or "hostPort" in port:
            yield f"port {port}"
    for mount in mounts:
        if "subPath" in mount or "subPathExpr" in mount:
            yield f"{mount['mountPath']}: a subPath sees no change"
    yield from _optional_faults(container)
    for key in {*container.get("securityContext", {})} - OWN_RIGHTS:
        yield f"{container['name']}: {key} is the Pod's to say"


def _optional_faults(container: dict[str, Any]) -> Iterator[str]:
    references = [source.get("configMapRef", {}) for source in container.get("envFrom", [])]
    references += [
        entry.get("valueFrom", {}).get("secretKeyRef", {}) for entry in container.get("env", [])
    ]
    for reference in references:
        if reference.get("optional"):
            yield f"{reference['name']} is optional, so nothing says that it is missing"


def _memory_faults(pod: Pod) -> Iterator[str]:
    container = pod.spec["containers"][0]
    memory = quantity(container.get("resources", {}).get("limits", {}).get("memory", 0)) / 2**30
    for volume in pod.spec.get("volumes", []):
        if (volume.get("emptyDir") or {}).get("medium"):
            yield f"{volume['name']}: an emptyDir in memory counts against its limit"
    is_ray = "ray.io/group" in pod.labels
    asked = quantity(container.get("resources", {}).get("requests", {}).get("memory", 0)) / 2**30
    if is_ray and not min(memory, asked) >= LEAST_MEMORY_GIB:
        yield f"{asked:g} GiB of memory, at most {memory:g}, start no Ray"


def variables_are_read(manifests: list[Manifest]) -> Iterator[str]:
    """Variables of Ray Serve and the product are known to them, of the hub fit the Job."""
    has_job = any(manifest["kind"] == "Job" for manifest in manifests)
    for pod in pods(manifests):
        given = variables(manifests, pod)
        for name in given:
            if re.match(r"RAY_SERVE_|TRUTHGPT_", name) and name not in known_variables():
                yield f"{pod.name}: nothing reads {name}"
        if "RAY_AUTH_TOKEN" in given or "HF_TOKEN" in given:
            yield f"{pod.name}: a token stands in a ConfigMap or in the manifest"
        if given.get("RAY_SERVE_HAPROXY_BINARY_PATH", PROGRAM) != PROGRAM:
            yield f"{pod.name}: no program at {given['RAY_SERVE_HAPROXY_BINARY_PATH']}"
        if given.get("RAY_SERVE_ENABLE_HA_PROXY", "1") != "1":
            yield f"{pod.name}: HAProxy is off"
        yield from (f"{pod.name}: {fault}" for fault in _hub_faults(given, has_job))
        yield from (f"{pod.name}: {fault}" for fault in _order_faults(pod))


def _hub_faults(given: dict[str, str], has_job: bool) -> Iterator[str]:
    for name in {*HUB_FOLDERS} & {*given}:
        if not given[name].startswith(given.get("HF_HOME", "") + "/"):
            yield f"{name} {given[name]} is not in HF_HOME"
    if has_job and given.get("HF_HUB_OFFLINE", "0") in ("1", "true", "True", "yes"):
        yield "HF_HUB_OFFLINE, and a Job that downloads"


def _order_faults(pod: Pod) -> Iterator[str]:
    sources = pod.spec["containers"][0].get("envFrom", [])
    names = [source["configMapRef"]["name"] for source in sources if "configMapRef" in source]
    if names and not names[-1].startswith("truthgpt-env"):
        yield f"what truthgpt-env says is not the last: {names}"


@functools.cache
def known_variables() -> frozenset[str]:
    """Returns the names that the source of Ray Serve and of the product has."""
    texts = [
        source_text("ray", "serve/_private") or "",
        source_text("ray", "serve/handle.py") or "",
    ]
    for folder in ("truthgpt_serve", "deployments"):
        texts += [path.read_text(encoding="utf-8") for path in (ROOT / folder).rglob("*.py")]
    return frozenset(re.findall(r"\b(?:RAY_SERVE|TRUTHGPT)_\w+", "\n".join(texts)))


def jobs_have_time(manifests: list[Manifest]) -> Iterator[str]:
    """Jobs may take as long as a download."""
    for job in (m for m in manifests if m["kind"] == "Job"):
        limit = job["spec"].get("activeDeadlineSeconds", DOWNLOAD_S)
        if limit < DOWNLOAD_S:
            yield f"Job {job['metadata']['name']} is ended after {limit} s"


def groups_are_in_order(manifests: list[Manifest]) -> Iterator[str]:
    """Names of groups are DNS labels; those with GPUs follow those without."""
    names = [pod.name for pod in ray_pods(manifests)]
    for name in names:
        if not re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", name):
            yield f"group {name!r} is no DNS label"
    has_gpus = [gpus_of(pod) > 0 for pod in ray_pods(manifests)]
    if has_gpus != sorted(has_gpus):
        yield f"a group was put before others, which makes a new cluster: {names[1:]}"
