"""Rules about names of objects that a Pod asks for beside volumes and variables.

Each takes manifests and returns its faults.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.support.k8s_links import documented_secrets, pods, secret_keys
from tests.support.k8s_manifests import Manifest

REFERENCES = {
    "serviceAccountName": ("ServiceAccount", ("default",)),
    "priorityClassName": ("PriorityClass", ("system-cluster-critical", "system-node-critical")),
    "runtimeClassName": ("RuntimeClass", ("nvidia",)),
}
"""Keys of a Pod's specification, the kind that each names, and what a cluster has by itself."""
OWN_PREFIX = "truthgpt.io/"


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
