"""What manifests say of each other: labels of Pods, named ports, Secrets and keys; asserts nothing.

Also what the operator makes of a RayService, such as Services and labels: KubeRay's
`ray-operator/controllers/ray/common/service.go` and `pod.go`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.support.k8s_manifests import (
    K8S,
    ROOT,
    Manifest,
    cluster_spec,
    environment,
    groups,
    one,
)

CLUSTER_SCOPED = ("Namespace", "ClusterRole", "ClusterRoleBinding", "GatewayClass")
OWN_IMAGE = "truthgpt-serve-"


@dataclass(frozen=True)
class Pod:
    """A Pod that some object makes: its name here, its labels and its specification."""

    name: str
    labels: dict[str, str]
    spec: Manifest

    @property
    def ports(self) -> dict[str, int]:
        """Returns the named ports of all containers."""
        return {
            port["name"]: port["containerPort"]
            for container in self.spec["containers"]
            for port in container.get("ports", [])
        }


def pods(manifests: list[Manifest]) -> list[Pod]:
    """Returns one Pod of each template, with the labels that the operator adds."""
    found = []
    for manifest in manifests:
        kind, name = manifest["kind"], manifest["metadata"]["name"]
        if kind == "RayService":
            for group, spec in groups(manifest):
                added = {
                    "ray.io/group": group,
                    "ray.io/node-type": "head" if group == "headgroup" else "worker",
                    "ray.io/cluster": f"{name}-abcde",
                    "ray.io/is-ray-node": "yes",
                }
                labels = {**spec["template"]["metadata"]["labels"], **added}
                found.append(Pod(group, labels, spec["template"]["spec"]))
        elif kind in ("Job", "StatefulSet", "Deployment"):
            template = manifest["spec"]["template"]
            labels = template["metadata"].get("labels", {})
            found.append(Pod(f"{kind}/{name}", labels, template["spec"]))
    return found


def ray_pods(manifests: list[Manifest]) -> list[Pod]:
    """Returns the Pods of `pods` that are Ray's, the head first."""
    return [pod for pod in pods(manifests) if "ray.io/group" in pod.labels]


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """Tells whether a label selector picks something with these labels."""
    if not selector.get("matchLabels", {}).items() <= labels.items():
        return False
    return all(
        _expression_holds(entry, labels.get(entry["key"]))
        for entry in selector.get("matchExpressions", [])
    )


def _expression_holds(entry: dict[str, Any], value: str | None) -> bool:
    operator: str = entry["operator"]
    if operator in ("Exists", "DoesNotExist"):
        return (value is not None) == (operator == "Exists")
    return (value in entry["values"]) == (operator == "In")


def namespace_of(manifests: list[Manifest]) -> str | None:
    """Returns the RayService's namespace."""
    found: str | None = one(manifests, "RayService")["metadata"].get("namespace")
    return found


def serve_service(manifests: list[Manifest]) -> tuple[str, int | None]:
    """Returns name and port of the Service that the operator makes for the service's clients."""
    head = ray_pods(manifests)[0]
    return one(manifests, "RayService")["metadata"]["name"] + "-serve-svc", head.ports.get("serve")


def serve_file(manifests: list[Manifest]) -> dict[str, Any]:
    """Returns the Serve file that the RayService holds."""
    found: dict[str, Any] = read_yaml(one(manifests, "RayService")["spec"]["serveConfigV2"])
    return found


@functools.cache
def read_yaml(text: str) -> Any:
    """Returns what a text holds; not to be changed, because it is read once."""
    return yaml.load(text, Loader=yaml.CSafeLoader)


def longest_request_s(manifests: list[Manifest]) -> float:
    """Returns the router's `request_timeout_s`."""
    from truthgpt_serve.config import load_router_args

    for application in serve_file(manifests).get("applications", []):
        if application["import_path"].endswith("router"):
            args = application.get("args") or {}
            return load_router_args(args, place="router").request_timeout_s
    return 600.0


def variables(manifests: list[Manifest], pod: Pod) -> dict[str, str]:
    """Returns the plain variables of a Pod's first container."""
    return environment(manifests, pod.spec["containers"][0])


@functools.cache
def documented_secrets() -> dict[str, set[str]]:
    """Returns the Secrets that secrets.example.yaml shows, and the keys of each."""
    text = (K8S / "base" / "secrets.example.yaml").read_text(encoding="utf-8")
    return {
        secret["metadata"]["name"]: {*secret.get("stringData", {}), *secret.get("data", {})}
        for secret in yaml.safe_load_all(text)
    }


def secret_keys(manifests: list[Manifest]) -> Iterator[tuple[str, str, str | None]]:
    """Yields who names a Secret, its name, and its key where one is named."""
    for pod in pods(manifests):
        yield from _secrets_of_variables(pod)
        for volume in pod.spec.get("volumes", []):
            if "secret" in volume:
                yield pod.name, volume["secret"]["secretName"], None
        for entry in pod.spec.get("imagePullSecrets", []):
            yield pod.name, entry["name"], None
    spec = cluster_spec(one(manifests, "RayService"))
    for name in ("redisPassword", "redisUsername"):
        given = spec.get("gcsFaultToleranceOptions", {}).get(name, {}).get("valueFrom")
        if given:
            yield name, given["secretKeyRef"]["name"], given["secretKeyRef"]["key"]
    for gateway in (manifest for manifest in manifests if manifest["kind"] == "Gateway"):
        for listener in gateway["spec"]["listeners"]:
            for reference in listener.get("tls", {}).get("certificateRefs", []):
                yield f"listener {listener['name']}", reference["name"], None


def _secrets_of_variables(pod: Pod) -> Iterator[tuple[str, str, str | None]]:
    for container in [*pod.spec["containers"], *pod.spec.get("initContainers", [])]:
        for source in container.get("envFrom", []):
            if "secretRef" in source:
                yield pod.name, source["secretRef"]["name"], None
        for entry in container.get("env", []):
            reference = entry.get("valueFrom", {}).get("secretKeyRef")
            if reference:
                yield f"{pod.name}: {entry['name']}", reference["name"], reference["key"]


def seconds(text: str) -> float:
    """Returns the seconds of a duration such as `1m30s`."""
    unit = {"h": 3600, "m": 60, "s": 1, "ms": 0.001}
    return sum(float(n) * unit[u] for n, u in re.findall(r"(\d+)(ms|h|m|s)", text))


def quantity(text: str | int) -> float:
    """Returns the number that a quantity of Kubernetes stands for: `500m`, `4Gi`, `2`."""
    units = {"": 1, "m": 1e-3, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
    match = re.fullmatch(r"([\d.]+)([a-zA-Z]*)", str(text))
    if match is None or match[2] not in units:
        return float("nan")  # which is neither above nor below anything
    return float(match[1]) * units[match[2]]


@functools.cache
def project_pin(name: str) -> str:
    """Returns the version that pyproject.toml pins a package to, or the project's own."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    if name == "truthgpt-serve":
        pattern = r'^version = "([^"]+)"'
    else:
        pattern = rf'"{re.escape(name)}(?:\[[^\]]*\])?==([^";, ]+)'
    found = re.search(pattern, text, re.M)
    if found is None:
        raise ValueError(f"pyproject.toml does not pin {name}")
    return found[1]


@functools.cache
def gpu_groups() -> dict[str, Any]:
    """Returns what k8s/gpus/gpus.yaml says of each GPU."""
    found: dict[str, Any] = yaml.safe_load(Path(K8S / "gpus" / "gpus.yaml").read_text())
    return found


def gpus_of(pod: Pod) -> float:
    """Returns the GPUs that a Pod's first container is limited to."""
    limits = pod.spec["containers"][0].get("resources", {}).get("limits", {})
    return sum(quantity(value) for key, value in limits.items() if key.startswith("nvidia.com/"))
