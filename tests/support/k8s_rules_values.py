"""Rules about values that stand in several files: ports, versions, images, sizes, GPUs, times.

Each takes manifests and returns its faults.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import isnan
from typing import Any

from tests.support.k8s_links import (
    OWN_IMAGE,
    Pod,
    gpu_groups,
    gpus_of,
    longest_request_s,
    pods,
    project_pin,
    quantity,
    ray_pods,
    read_yaml,
    serve_file,
    variables,
)
from tests.support.k8s_manifests import Manifest, cluster_spec, groups, one

RAY_PORTS = {
    "gcs-server": 6379,
    "dashboard": 8265,
    "client": 10001,
    "metrics": 8080,
    "as-metrics": 44217,
    "dash-metrics": 44227,
}
"""Where Ray and KubeRay listen if nothing else is said."""
ORDINARY_NODE = (15.5, 58.0)
"""CPUs and GiB that a node with 16 and 64 leaves to Pods: the most a group without GPUs may ask."""
NODE_LABELS = {
    "product": "nvidia.com/gpu.product",
    "gke": "cloud.google.com/gke-accelerator",
    "karpenter": "karpenter.k8s.aws/instance-gpu-name",
    "aks": "node.kubernetes.io/instance-type",
}
REDIS_WITHOUT_HOLES = (7, 4, 6)
GPU_LABEL = "truthgpt.io/gpu"
TOLERATIONS = [
    {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},
    {"key": "sku", "operator": "Equal", "value": "gpu", "effect": "NoSchedule"},
]
"""Of the taints that GPU nodes have: GKE's and NVIDIA's, and AKS'."""


def ports_agree(manifests: list[Manifest]) -> Iterator[str]:
    """The Serve file's port is the Pods' port `serve`; the others are where Ray listens."""
    options = serve_file(manifests).get("http_options", {})
    if options.get("host") != "0.0.0.0":  # text of a manifest
        yield f"http_options.host is {options.get('host')}"
    for pod in ray_pods(manifests):
        if pod.ports.get("serve") != options.get("port", 8000):
            yield f"{pod.name}: port serve {pod.ports.get('serve')}, Serve's {options.get('port')}"
        for name, number in pod.ports.items():
            if RAY_PORTS.get(name, number) != number:
                yield f"{pod.name}: port {name} is {number}, Ray's {RAY_PORTS[name]}"
        is_head = pod.labels["ray.io/node-type"] == "head"
        for name in {*(RAY_PORTS if is_head else ("metrics",)), "serve"} - {*pod.ports}:
            yield f"{pod.name}: has no port {name}"


def versions_agree(manifests: list[Manifest]) -> Iterator[str]:
    """`rayVersion` is the pinned Ray's; images have a name, of the group's kind, and a version."""
    wanted, given = project_pin("ray"), cluster_spec(one(manifests, "RayService")).get("rayVersion")
    if given != wanted:
        yield f"rayVersion is {given}, pyproject.toml pins {wanted}"
    for pod in pods(manifests):
        for container in [*pod.spec["containers"], *pod.spec.get("initContainers", [])]:
            path, _, tag = container["image"].partition("@")[0].rpartition(":")
            name = path.rpartition("/")[2]
            if not name.startswith(OWN_IMAGE) and "ray.io/group" not in pod.labels:
                third_party = not pod.name.startswith("Job/")
                if not third_party or not re.match(r"\d+\.\d+\.\d+", tag):
                    yield f"{pod.name}: image {container['image']}"
                elif name == "redis" and _numbers(tag) < REDIS_WITHOUT_HOLES:
                    yield f"{pod.name}: redis {tag} has known holes"
                continue
            kind = _image_kind(pod)
            if name != f"{OWN_IMAGE}{kind}":
                yield f"{pod.name}: image {container['image']} is not {OWN_IMAGE}{kind}"
            if tag != project_pin("truthgpt-serve"):
                yield f"{pod.name}: tag {tag!r} is not {project_pin('truthgpt-serve')}"
            if container.get("imagePullPolicy") != "IfNotPresent":
                yield f"{pod.name}: imagePullPolicy {container.get('imagePullPolicy')}"


def _cpus(text: str) -> float:
    return float("inf") if text == "inf" else quantity(text)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:3]))


def _image_kind(pod: Pod) -> str:
    if pod.labels.get("ray.io/group") == "headgroup":
        return "head"
    return "cuda" if gpus_of(pod) else "cpu"


def sizes_fit(manifests: list[Manifest]) -> Iterator[str]:
    """Requests are at most limits, GPUs equal; a node can hold a Pod; emptyDirs are bounded."""
    for pod in pods(manifests):
        held = 0.0
        for volume in pod.spec.get("volumes", []):
            if "emptyDir" in volume:
                if not quantity((volume["emptyDir"] or {}).get("sizeLimit", 0)) > 0:
                    yield f"{pod.name}: emptyDir {volume['name']} has no sizeLimit"
                held += quantity((volume["emptyDir"] or {}).get("sizeLimit", 0))
        for container in pod.spec["containers"]:
            yield from (f"{pod.name}: {fault}" for fault in _container_faults(container, held))
        yield from (f"{pod.name}: {fault}" for fault in _node_faults(pod))


def _container_faults(container: dict[str, Any], held: float) -> Iterator[str]:
    resources = container.get("resources", {})
    requests, limits = resources.get("requests", {}), resources.get("limits", {})
    yield from (
        f"{name}: {text!r} is no quantity"
        for name, text in [*requests.items(), *limits.items()]
        if isnan(quantity(text))
    )
    for name in {*requests, *limits}:
        asked, most = requests.get(name), limits.get(name)
        if name.startswith("nvidia.com/") and asked != most:
            yield f"{name} is {asked} in requests, {most} in limits"
        elif asked is not None and most is not None and quantity(asked) > quantity(most):
            yield f"{name} is {asked} in requests, above {most} in limits"
    for name in {"cpu", "memory", "ephemeral-storage"} - {*requests}:
        yield f"no {name} in requests"
    for name in {"memory", "ephemeral-storage"} - {*limits}:
        yield f"no {name} in limits"
    if quantity(limits.get("ephemeral-storage", 0)) < held:
        yield f"ephemeral-storage {limits.get('ephemeral-storage')} is below its emptyDirs"


def _node_faults(pod: Pod) -> Iterator[str]:
    requests = pod.spec["containers"][0]["resources"].get("requests", {})
    cpus, memory = quantity(requests.get("cpu", 0)), quantity(requests.get("memory", 0)) / 2**30
    name = pod.labels.get("ray.io/group", "").removeprefix("gpu-")
    machines = gpu_groups().get(name, {}).get("machines", {"an ordinary node": ORDINARY_NODE})
    for machine, (has_cpus, has_memory) in machines.items():
        if cpus > has_cpus or memory > has_memory:
            yield f"{cpus:g} CPUs and {memory:g} GiB do not fit on {machine}"


def gpu_nodes_agree(manifests: list[Manifest]) -> Iterator[str]:
    """Groups with GPUs get onto their nodes, what needs none stays off them, and models fit one."""
    service = one(manifests, "RayService")
    by_name = {pod.name: pod for pod in ray_pods(manifests)}
    has_gpus = False
    for name, group in groups(service):
        pod, label = by_name[name], group.get("labels", {}).get(GPU_LABEL)
        found = variables(manifests, pod)
        key, _, value = found.get("TRUTHGPT_CPU_NODE_LABEL", "").partition("=")
        if gpus_of(pod) == 0:
            if name != "headgroup" and group.get("labels", {}).get(key) != value:
                yield f"{name}: has not the label {key}={value} of TRUTHGPT_CPU_NODE_LABEL"
            continue
        has_gpus = True
        if name != f"gpu-{label}" or label not in gpu_groups():
            yield f"{name}: its label is {label}"
            continue
        if key not in group["labels"] or group["labels"][key] == value:
            yield f"{name}: replicas without GPUs settle here"
        if gpus_of(pod) != gpu_groups()[label]["gpus"]:
            yield f"{name}: {gpus_of(pod):g} GPUs"
        yield from (f"{name}: {fault}" for fault in _placement_faults(pod, gpu_groups()[label]))
    wanted = ("cpu", "gpu") if has_gpus else ("cpu",)
    for name, pod in by_name.items():
        accelerator = variables(manifests, pod).get("TRUTHGPT_ACCELERATOR")
        if accelerator not in wanted:
            yield f"{name}: TRUTHGPT_ACCELERATOR is {accelerator}"


def _placement_faults(pod: Pod, gpu: dict[str, Any]) -> Iterator[str]:
    if pod.spec.get("tolerations") != TOLERATIONS:
        yield f"tolerates {pod.spec.get('tolerations')}, the taints are of {TOLERATIONS}"
    affinity = pod.spec.get("affinity", {}).get("nodeAffinity", {})
    chosen = affinity.get("requiredDuringSchedulingIgnoredDuringExecution", {})
    asked = [
        (entry["key"], entry["operator"], entry["values"])
        for term in chosen.get("nodeSelectorTerms", [])
        for entry in term["matchExpressions"]
    ]
    known = [(label, "In", gpu[key]) for key, label in NODE_LABELS.items() if key in gpu]
    if asked != known:
        yield f"asks for nodes {asked}, not {known}"
    terms = chosen.get("nodeSelectorTerms", [])
    if any(len(term["matchExpressions"]) != 1 for term in terms):
        yield "no node has all labels of a term"


def models_fit_a_group(manifests: list[Manifest]) -> Iterator[str]:
    """Each model's GPUs, CPUs and labels are those of some group."""
    files = {
        f"models/{name}": text
        for manifest in manifests
        if manifest["kind"] == "ConfigMap" and "truthgpt-models" in manifest["metadata"]["name"]
        for name, text in manifest["data"].items()
    }
    service = one(manifests, "RayService")
    workers = [
        (pod, group) for pod, (_, group) in zip(ray_pods(manifests), groups(service), strict=True)
    ]
    for application in serve_file(manifests).get("applications", []):
        if not application["import_path"].endswith("model"):
            continue
        args = application.get("args") or {}
        config = read_yaml(files[args["config"]]) if args.get("config") in files else args
        if args.get("config", "") not in {"", *files}:
            yield f"{application['name']}: there is no {args['config']}"
        hardware = {**(config.get("hardware") or {}), **(args.get("hardware") or {})}
        if not any(_holds(pod, group, hardware) for pod, group in workers[1:]):
            yield f"{application['name']}: no group has {hardware}"


def _holds(pod: Pod, group: Manifest, hardware: dict[str, Any]) -> bool:
    gpus, labels = hardware.get("gpus", "auto"), group.get("labels", {})
    wanted = hardware.get("label_selector") or {}
    if any(
        not str(value).startswith(("!", "in(")) and labels.get(key) != value
        for key, value in wanted.items()
    ):
        return False
    cpus = pod.spec["containers"][0]["resources"].get("limits", {}).get("cpu", "inf")
    if isinstance(hardware.get("cpus"), int | float) and hardware["cpus"] > _cpus(cpus):
        return False
    if gpus == "auto" and hardware.get("device") in (None, "auto"):
        return True
    need = 1.0 if gpus == "auto" else float(gpus)
    if hardware.get("span_nodes"):
        need = min(need, gpus_of(pod))
    return need <= gpus_of(pod) and group["maxReplicas"] > 0


def head_serves_no_client(manifests: list[Manifest]) -> Iterator[str]:
    """The head has no replicas and no clients, so that its loss cuts no stream; groups agree."""
    service = one(manifests, "RayService")
    spec = cluster_spec(service)
    if service["spec"].get("excludeHeadPodFromServeSvc") is not True:
        yield "clients reach the head"
    if spec["headGroupSpec"].get("rayStartParams", {}).get("num-cpus") != "0":
        yield "replicas run on the head"
    sources = [pod.spec["containers"][0].get("envFrom") for pod in ray_pods(manifests)]
    if any(source != sources[0] for source in sources):
        yield "groups have different sources of variables"
    stores = [m["metadata"]["name"] for m in manifests if m["kind"] == "StatefulSet"]
    if stores and "gcsFaultToleranceOptions" not in spec:
        yield f"{stores} is there, and the head does not use it"


def times_agree(manifests: list[Manifest]) -> Iterator[str]:
    """An old cluster and HAProxy's old process outlive the longest request."""
    spec = one(manifests, "RayService")["spec"]
    longest = longest_request_s(manifests)
    hard_stop = float(
        variables(manifests, ray_pods(manifests)[0]).get("RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S", 0)
    )
    if hard_stop <= longest:
        yield f"HAProxy cuts streams after {hard_stop:.0f} s, a request may take {longest:.0f} s"
    if spec.get("rayClusterDeletionDelaySeconds", 60) < hard_stop:
        yield (
            f"rayClusterDeletionDelaySeconds is {spec.get('rayClusterDeletionDelaySeconds')}, "
            f"a request may take {longest:.0f} s"
        )
