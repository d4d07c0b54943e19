"""Rules about what Pods keep in volumes: claims, downloads, and files that settings name.

Each takes manifests and returns its faults.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from tests.support.k8s_links import (
    Pod,
    documented_secrets,
    pods,
    ray_pods,
    read_yaml,
    serve_file,
    variables,
)
from tests.support.k8s_manifests import Manifest, cluster_spec, one
from tests.support.k8s_rules_containers import HUB_FOLDERS

IMAGE_FOLDERS = ("/opt/truthgpt/models", "/opt/truthgpt/venv", "/etc/ssl", "/usr")
"""Where the images have files by themselves, k8s/Dockerfile."""


def cache_is_shared(manifests: list[Manifest]) -> Iterator[str]:
    """A claim has a mode for the Pods that mount it: one, of one node, or of several."""
    claims = {m["metadata"]["name"]: m for m in manifests if m["kind"] == "PersistentVolumeClaim"}
    groups = cluster_spec(one(manifests, "RayService"))["workerGroupSpecs"]
    most = {group["groupName"]: group["maxReplicas"] for group in groups}
    workers = sum(most.values())
    for name, claim in claims.items():
        users = [pod for pod in pods(manifests) if name in _claims_of(pod).values()]
        modes = claim["spec"].get("accessModes", [])
        of_ray = [pod.name for pod in users if "ray.io/group" in pod.labels]
        mounts = sum(most.get(pod, 1) for pod in of_ray)
        if "ReadWriteOncePod" in modes:
            total = sum(most.get(pod.name, 1) for pod in users)
            if total > 1:
                yield f"{name} is {modes}: one Pod of up to {total} gets it, the others wait"
        elif mounts > 1 and workers > 1 and "ReadWriteMany" not in modes:
            yield f"{of_ray}: {name} is {modes}, for up to {workers} workers"


def _claims_of(pod: Pod) -> dict[str, str]:
    """Returns the claims of a Pod's volumes, by the volume's name."""
    return {
        volume["name"]: volume["persistentVolumeClaim"]["claimName"]
        for volume in pod.spec.get("volumes", [])
        if "persistentVolumeClaim" in volume
    }


def downloads_are_found(manifests: list[Manifest]) -> Iterator[str]:
    """Jobs download to where Ray's Pods read: one folder of the hub on one claim."""
    places: dict[tuple[str, ...], list[str]] = {}
    for pod in pods(manifests):
        if "ray.io/group" not in pod.labels and not pod.name.startswith("Job/"):
            continue
        found = variables(manifests, pod)
        home = f"{found.get('HF_HOME', '~/.cache/huggingface')}/hub"
        hub = found.get("HF_HUB_CACHE", found.get("HUGGINGFACE_HUB_CACHE", home))
        transformers = found.get("TRANSFORMERS_CACHE", hub)
        claim = _holder(pod, hub).get("persistentVolumeClaim", {}).get("claimName", "no claim")
        folders = (hub,) if transformers == hub else (hub, transformers)
        places.setdefault((*folders, claim), []).append(pod.name)
    if len(places) > 1:
        texts = [f"{names}: {', '.join(place)}" for place, names in places.items()]
        yield f"models of the hub are not at one place ({', '.join(HUB_FOLDERS)}): {texts}"


def _holder(pod: Pod, path: str) -> dict[str, Any]:
    """Returns the volume that a path of a Pod's first container is on, or nothing."""
    mount = _mount(pod, path)
    volumes: dict[str, dict[str, Any]] = {v["name"]: v for v in pod.spec.get("volumes", [])}
    return volumes.get(mount.get("name", ""), {})


def _mount(pod: Pod, path: str) -> dict[str, Any]:
    mounts = {m["mountPath"]: m for m in pod.spec["containers"][0].get("volumeMounts", [])}
    whole = PurePosixPath(path)
    return next((mounts[str(p)] for p in (whole, *whole.parents) if str(p) in mounts), {})


def files_are_mounted(manifests: list[Manifest]) -> Iterator[str]:
    """Files that variables, the Serve file and models name are in a volume that has them."""
    data = {m["metadata"]["name"]: m.get("data") or {} for m in manifests if "data" in m}
    settings: dict[str, Any] = {"the Serve file": serve_file(manifests)}
    for name, files in data.items():
        if name.startswith("truthgpt-models"):
            settings |= {path: read_yaml(text) for path, text in files.items()}
    named = [
        (f"{place}: {key}", path) for place in settings for key, path in _files(settings[place])
    ]
    for pod in ray_pods(manifests):
        own = [
            (key, value)
            for key, value in variables(manifests, pod).items()
            if re.fullmatch(r"TRUTHGPT_\w+_FILE", key) and value.startswith("/")
        ]
        for place, path in (*named, *own):
            if fault := _file_fault(pod, place, path, data):
                yield f"{pod.name}: {place} {path} {fault}"


def _files(settings: Any) -> Iterator[tuple[str, str]]:
    """Yields the keys that end in _file, at any depth, and their absolute paths."""
    if isinstance(settings, list):
        for entry in settings:
            yield from _files(entry)
    elif isinstance(settings, dict):
        for key, value in settings.items():
            if str(key).endswith("_file") and str(value).startswith("/"):
                yield key, value
            yield from _files(value)


def _file_fault(pod: Pod, place: str, path: str, data: dict[str, Any]) -> str | None:
    if path.startswith(tuple(folder + "/" for folder in IMAGE_FOLDERS)):
        return None
    mount, volume = _mount(pod, path), _holder(pod, path)
    is_usage = "usage_file" in place.lower()
    if is_usage and pod.labels["ray.io/node-type"] != "head":
        return None  # the head writes it
    if not volume:
        return "is on no volume"
    if is_usage:
        return "is written, and its volume is read-only" if mount.get("readOnly") else None
    secret = volume.get("secret", {}).get("secretName", "")
    name = volume.get("configMap", {}).get("name", secret)
    there = {**documented_secrets(), **data}.get(name)
    inside = str(PurePosixPath(path).relative_to(mount["mountPath"]))
    if "keys_file" in place.lower() and not secret:
        return "is in no Secret's folder"
    if there is not None and inside not in there:
        return f"is not in {name}, which has {sorted(there)}"
    return None
