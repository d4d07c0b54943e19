"""Builds the manifests of k8s/ with kustomize, and finds its way in them; asserts nothing.

Knows the layout of a RayService, not what is right in one.
"""

from __future__ import annotations

import copy
import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
K8S = ROOT / "k8s"
OVERLAYS = (
    "base",
    *sorted(f"overlays/{path.parent.name}" for path in K8S.glob("overlays/*/kustomization.yaml")),
)
"""With every environment that someone has put there: the tests hold it to the rules too."""
SHIPPED = ("base", "overlays/cpu-dev", "overlays/nvidia", "overlays/ha")
"""Those with the Serve file of configs/."""
COMPONENTS = tuple(
    sorted(f"components/{path.parent.name}" for path in K8S.glob("components/*/kustomization.yaml"))
)
BUILD_S = 60
HOW_TO_GET = "`python k8s/get_kubectl.py FOLDER` puts one into a folder of the PATH"

Manifest = dict[str, Any]


@functools.cache
def kustomize_command() -> tuple[str, ...] | None:
    """Returns the command that builds a folder, or None where there is none that is new enough."""
    beside = Path(sys.executable).with_name("kubectl")
    for kubectl in (os.environ.get("KUBECTL"), shutil.which("kubectl"), str(beside)):
        if kubectl and Path(kubectl).exists() and _kustomize_major(kubectl) >= 5:
            return (kubectl, "kustomize")
    kustomize = shutil.which("kustomize")
    return (kustomize, "build") if kustomize else None


def _kustomize_major(kubectl: str) -> int:
    command = [kubectl, "version", "--client", "--output", "json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_S)
    try:
        version = str(json.loads(done.stdout).get("kustomizeVersion", "v0"))
    except ValueError:
        return 0
    return int(version.removeprefix("v").partition(".")[0])


def require_kustomize() -> tuple[str, ...]:
    """Returns the command of `kustomize_command`, or skips the test."""
    command = kustomize_command()
    if command is None:
        pytest.skip(f"needs kubectl with kustomize 5: {HOW_TO_GET}")
    return command


def run_kustomize(folder: Path) -> subprocess.CompletedProcess[str]:
    """Builds a folder; a failed build returns too."""
    command = [*require_kustomize(), str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=BUILD_S)


@functools.cache
def _build_text(folder: Path) -> str:
    done = run_kustomize(folder)
    assert done.returncode == 0, f"{folder}: {done.stderr}"
    return done.stdout


def build(name: str) -> list[Manifest]:
    """Returns the manifests of a folder of k8s/; each call a copy of its own, to be spoiled."""
    return parse(_build_text(K8S / name))


def parse(text: str) -> list[Manifest]:
    """Returns the manifests in a text of several YAML documents."""
    return [document for document in yaml.load_all(text, Loader=yaml.CSafeLoader) if document]


def write_overlay(folder: Path, components: tuple[str, ...], extra: str = "") -> Path:
    """Writes a kustomization of the base with these components into `folder`; returns it."""
    base = os.path.relpath(K8S / "base", folder)
    lines = ["resources:", f"  - {base}", "components:"]
    lines += [f"  - {os.path.relpath(K8S / name, folder)}" for name in components]
    (folder / "kustomization.yaml").write_text("\n".join([*lines, extra]) + "\n")
    return folder


def one(manifests: list[Manifest], kind: str, name: str | None = None) -> Manifest:
    """Returns the one manifest of a kind, or of a kind and name."""
    found = [
        manifest
        for manifest in manifests
        if manifest["kind"] == kind and name in (None, manifest["metadata"]["name"])
    ]
    assert len(found) == 1, f"{len(found)} of {kind} {name or ''}"
    return found[0]


def cluster_spec(service: Manifest) -> Manifest:
    """Returns the RayCluster's spec inside a RayService."""
    spec: Manifest = service["spec"]["rayClusterConfig"]
    return spec


def groups(service: Manifest) -> Iterator[tuple[str, Manifest]]:
    """Yields name and specification of the head group and of each worker group."""
    spec = cluster_spec(service)
    yield "headgroup", spec["headGroupSpec"]
    for group in spec["workerGroupSpecs"]:
        yield group["groupName"], group


def ray_container(group: Manifest) -> Manifest:
    """Returns the container that KubeRay takes for Ray's: the first."""
    container: Manifest = group["template"]["spec"]["containers"][0]
    return container


def pod_specs(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """Yields a name and the Pod specification of everything that makes Pods."""
    for manifest in manifests:
        if manifest["kind"] == "RayService":
            for name, group in groups(manifest):
                yield f"RayService/{name}", group["template"]["spec"]
        elif manifest["kind"] in ("Job", "Deployment", "StatefulSet"):
            template = manifest["spec"]["template"]
            yield f"{manifest['kind']}/{manifest['metadata']['name']}", template["spec"]


def environment(manifests: list[Manifest], container: Manifest) -> dict[str, str]:
    """Returns a container's plain variables as Kubernetes makes them: later ones win."""
    found: dict[str, str] = {}
    sources = [source for source in container.get("envFrom", []) if "configMapRef" in source]
    for source in sources:
        found |= one(manifests, "ConfigMap", source["configMapRef"]["name"])["data"]
    return found | {
        entry["name"]: entry["value"] for entry in container.get("env", []) if "value" in entry
    }


def at(data: Any, path: str) -> Any:
    """Returns what lies at a dotted path, where numbers are positions in lists."""
    for key in path.split("."):
        data = data[int(key)] if isinstance(data, list) else data[key]
    return data


def spoiled(data: Any, path: str, value: Any) -> Any:
    """Returns a copy with `value` at a dotted path; the value `REMOVE` removes what is there."""
    copied = copy.deepcopy(data)
    parent, _, key = path.rpartition(".")
    holder = at(copied, parent) if parent else copied
    place: Any = int(key) if isinstance(holder, list) else key
    if value is REMOVE:
        del holder[place]
    else:
        holder[place] = value
    return copied


REMOVE = object()
