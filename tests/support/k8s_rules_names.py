"""Rules about names of objects that a Pod asks for beside volumes and variables.

Each takes manifests and returns its faults.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from tests.support.k8s_links import OWN_IMAGE, documented_secrets, pods, secret_keys
from tests.support.k8s_manifests import Manifest
from tests.support.k8s_rules_pods import named_configs

REFERENCES = {
    "serviceAccountName": ("ServiceAccount", ("default",)),
    "priorityClassName": ("PriorityClass", ("system-cluster-critical", "system-node-critical")),
    "runtimeClassName": ("RuntimeClass", ("nvidia",)),
}
"""Keys of a Pod's specification, the kind that each names, and what a cluster has by itself."""
OWN_PREFIX = "truthgpt.io/"
READ_BY_A_SIDECAR = "grafana_dashboard"
READ_BY_KUSTOMIZE = "truthgpt-serve-file"
"""Whose text components/serve-file puts into the RayService."""
OF_THE_JOB = "truthgpt-prefetch"
HASH = re.compile(r"-[a-z0-9]{10}$")
"""What kustomize appends to a generated name."""


def names_resolve(manifests: list[Manifest]) -> Iterator[str]:
    """Accounts and classes that Pods name are in the build; no node has a label of ours."""
    there = {(m["kind"], m["metadata"]["name"]) for m in manifests}
    for pod in pods(manifests):
        for key, (kind, known) in REFERENCES.items():
            name = pod.spec.get(key)
            if name is not None and name not in known and (kind, name) not in there:
                yield f"{pod.name}: there is no {kind} {name}"
        for label in pod.spec.get("nodeSelector", {}):
            if label.startswith(OWN_PREFIX):
                yield f"{pod.name}: no node has the label {label}"


def secrets_are_named(manifests: list[Manifest]) -> Iterator[str]:
    """A Secret that the build makes is one that something names: no hash is behind its name."""
    named = {name for _, name, _ in secret_keys(manifests)}
    for manifest in (m for m in manifests if m["kind"] == "Secret"):
        name = manifest["metadata"]["name"]
        if name not in named:
            alike = [each for each in documented_secrets() if name.startswith(each)]
            yield f"nothing names the Secret {name}; meant may be {alike or sorted(named)}"


def configs_are_named(manifests: list[Manifest]) -> Iterator[str]:
    """A ConfigMap that the build makes is one that something reads, and has no older twin."""
    has_job = any(manifest["kind"] == "Job" for manifest in manifests)
    used = {name for pod in pods(manifests) for name in named_configs(pod.spec)}
    stems: dict[str, list[str]] = {}
    for manifest in (m for m in manifests if m["kind"] == "ConfigMap"):
        name, metadata = manifest["metadata"]["name"], manifest["metadata"]
        stem = HASH.sub("", name)
        stems.setdefault(stem, []).append(name)
        has_reader = (
            READ_BY_A_SIDECAR in metadata.get("labels", {})
            or stem == READ_BY_KUSTOMIZE
            or (stem == OF_THE_JOB and not has_job)
        )
        if name not in used and not has_reader:
            yield f"nothing reads the ConfigMap {name}: `behavior: merge` changes one that is read"
    for stem, names in stems.items():
        if len(names) > 1:
            yield f"{len(names)} ConfigMaps {stem}, of which Pods read {sorted({*names} & used)}"


def images_are_of_one_registry(manifests: list[Manifest]) -> Iterator[str]:
    """Images of the product come from one place: an entry of `images:` missed none of them."""
    places: dict[str, set[str]] = {}
    for pod in pods(manifests):
        for container in [*pod.spec["containers"], *pod.spec.get("initContainers", [])]:
            place, _, name = container["image"].rpartition("/")
            if name.startswith(OWN_IMAGE):
                places.setdefault(place or "no registry", set()).add(name)
    if len(places) > 1:
        yield f"images come from several places: { {key: sorted(places[key]) for key in places} }"
