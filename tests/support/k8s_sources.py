"""What kustomize takes without a word: entries of a kustomization that meet nothing.

Reads the folders of k8s/ in kustomize's own order (resources, components, generators, patches,
images, replacements) and builds nothing: an entry is held against what is there when it is read.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.support.k8s_links import OWN_IMAGE
from tests.support.k8s_manifests import Manifest

OWN_IMAGES = frozenset(OWN_IMAGE + target for target in ("head", "cpu", "cuda"))
"""Of k8s/Dockerfile: an environment may name one before it has a group for it."""
KNOWN_GROUPS = ("", "apps", "batch", "policy", "networking.k8s.io")
"""Whose references kustomize follows by itself."""
REFERENCES = {
    "configMap": ("ConfigMap", "name"),
    "configMapRef": ("ConfigMap", "name"),
    "configMapKeyRef": ("ConfigMap", "name"),
    "persistentVolumeClaim": ("PersistentVolumeClaim", "claimName"),
}
"""What a Pod names: the key, the kind of the object, and the key of its name."""


@dataclass
class Named:
    """An object as selectors see it: names and namespaces are the first and the last one."""

    group: str
    kind: str
    names: list[str]
    namespaces: list[str]
    labels: dict[str, str]


@dataclass
class Layer:
    """What a kustomization has so far: objects, images, references, and its faults."""

    objects: list[Named] = field(default_factory=list)
    images: set[str] = field(default_factory=set)
    followed: set[tuple[str, str]] = field(default_factory=set)
    """Kind and path, its first part a foreign kind, of references that kustomize is to follow."""
    named: set[tuple[str, str, str]] = field(default_factory=set)
    """Kind, name and path of the references that foreign kinds have."""
    is_whole: bool = True
    """Whether all of it could be read; what is fetched cannot."""
    faults: list[str] = field(default_factory=list)

    def add(self, document: Manifest) -> None:
        """Adds an object with what it names."""
        metadata = document["metadata"]
        group = document["apiVersion"].rpartition("/")[0]
        space, labels = metadata.get("namespace", "default"), metadata.get("labels") or {}
        made = Named(group, document["kind"], [metadata["name"]] * 2, [space] * 2, dict(labels))
        self.objects.append(made)
        self.read(document, None if group in KNOWN_GROUPS else (document["kind"],))

    def read(self, data: Any, path: tuple[str, ...] | None) -> None:
        """Notes the images in some data, and the references if it has a path in a foreign kind."""
        if isinstance(data, list):
            for entry in data:
                self.read(entry, path)
        elif isinstance(data, dict):
            for key, value in data.items():
                below = None if path is None else (*path, str(key))
                if key == "image" and isinstance(value, str):
                    self.images.add(re.split(r"@|:(?!.*/)", value)[0])
                kind, own = REFERENCES.get(key, ("", ""))
                if below and isinstance(value, dict) and value.get(own):
                    self.named.add((kind, value[own], "/".join((*below, own))))
                self.read(value, below)

    def meets(self, selector: dict[str, Any]) -> list[Named]:
        """Returns the objects that a selector of a patch or a replacement picks."""
        return [each for each in self.objects if _picks(selector, each)]


def _picks(selector: dict[str, Any], each: Named) -> bool:
    wanted = {
        "group": [each.group],
        "kind": [each.kind],
        "name": each.names,
        "namespace": each.namespaces,
    }
    labels = re.findall(r"([^,=!\s]+)=+([^,=\s]+)", selector.get("labelSelector", ""))
    return all(
        any(re.fullmatch(selector[key], value) for value in values)
        for key, values in wanted.items()
        if selector.get(key)
    ) and all(each.labels.get(key) == value for key, value in labels)


def source_faults(folder: Path, *components: Path) -> list[str]:
    """Returns what is without effect in a kustomization, and in those that it and these name."""
    layer = Layer()
    for each in (folder, *components):
        _accumulate(each, layer)
    there = {(each.kind, name) for each in layer.objects for name in each.names}
    for kind, name, path in sorted(layer.named):
        if (kind, name) in there and (kind, path) not in layer.followed:
            layer.faults.append(
                f"the name of {kind} {name} is not followed at {path}: a prefix, a suffix or a hash"
                " does not reach it (configurations: nameReference)"
            )
    return layer.faults


def _documents(path: Path) -> list[Any]:
    return _parse(path.read_text(encoding="utf-8"))


@functools.cache
def _parse(text: str) -> list[Any]:
    return [each for each in yaml.load_all(text, Loader=yaml.CSafeLoader) if each]


def _accumulate(folder: Path, layer: Layer) -> None:
    """Reads a folder's kustomization into the layer of the one that names it."""
    [found] = _documents(folder / "kustomization.yaml")
    own = {key: value for key, value in found.items() if value is not None}
    into = layer if own.get("kind") == "Component" else Layer()
    for entry in own.get("resources", []):
        if (folder / entry).is_dir():
            _accumulate(folder / entry, into)
        elif (folder / entry).exists():
            for document in _documents(folder / entry):
                into.add(document)
        else:
            into.is_whole = False
    for entry in own.get("components", []):
        if (folder / entry).is_dir():
            _accumulate(folder / entry, into)
        else:
            into.is_whole = False
    for entry in own.get("configurations", []):
        into.followed |= set(_followed(_documents(folder / entry)))
    place = "/".join(folder.resolve().parts[-2:])
    faults = list(_generator_faults(own, into))
    _transform(own, into)
    faults += [*_patch_faults(folder, own, into), *_image_faults(own, into)]
    faults += _replacement_faults(folder, own, into)
    into.faults += [f"{place}: {fault}" for fault in faults] if into.is_whole else []
    if into is not layer:
        _join(layer, into)


def _join(layer: Layer, below: Layer) -> None:
    layer.objects += below.objects
    layer.images |= below.images
    layer.followed |= below.followed
    layer.named |= below.named
    layer.is_whole &= below.is_whole
    layer.faults += below.faults


def _followed(documents: list[Any]) -> Iterator[tuple[str, str]]:
    for document in documents:
        for entry in document.get("nameReference", []):
            for spec in entry.get("fieldSpecs", []):
                yield entry["kind"], f"{spec['kind']}/{spec['path']}"


def _transform(own: dict[str, Any], layer: Layer) -> None:
    """Gives objects the names, namespaces and labels that a kustomization sets."""
    labels = dict(own.get("commonLabels", {}))
    for entry in own.get("labels", []):
        labels |= entry.get("pairs", {})
    for each in layer.objects:
        name = own.get("namePrefix", "") + each.names[-1] + own.get("nameSuffix", "")
        each.names[-1] = name
        each.namespaces[-1] = own.get("namespace", each.namespaces[-1])
        each.labels |= labels


def _generator_faults(own: dict[str, Any], layer: Layer) -> Iterator[str]:
    for key, kind in (("configMapGenerator", "ConfigMap"), ("secretGenerator", "Secret")):
        for entry in own.get(key, []):
            name, behavior = entry["name"], entry.get("behavior", "create")
            there = [each for each in layer.objects if each.kind == kind and name in each.names]
            if behavior == "create" and there:
                yield f"{key}: {kind} {name} is there already: `behavior: merge` changes it"
            elif behavior != "create" and not there:
                yield f"{key}: there is no {kind} {name} to {behavior}"
            if not there:
                space = own.get("namespace", "default")
                layer.objects.append(Named("", kind, [name] * 2, [space] * 2, {}))


def _patch_faults(folder: Path, own: dict[str, Any], layer: Layer) -> Iterator[str]:
    for entry in own.get("patches", []):
        text = entry.get("patch")
        parts = _parse(text) if text else _documents(folder / entry["path"])
        target = entry.get("target")
        if target is not None and not layer.meets(target):
            yield f"patches: the target of {entry.get('path', 'a patch')} meets nothing: {target}"
        for part in parts:
            if isinstance(
                part, dict
            ):  # a strategic merge: without a target, kustomize looks itself
                group = part["apiVersion"].rpartition("/")[0]
                layer.read(part, None if group in KNOWN_GROUPS else (part["kind"],))
                continue
            kinds = {e.kind for e in layer.meets(target or {}) if e.group not in KNOWN_GROUPS}
            for operation in part:
                keys = [key for key in operation["path"].split("/") if key]
                path = tuple(key for key in keys if key != "-" and not key.isdigit())
                for kind in kinds or {""}:
                    layer.read(operation.get("value"), (kind, *path) if kind else None)


def _image_faults(own: dict[str, Any], layer: Layer) -> Iterator[str]:
    entries = own.get("images", [])
    for entry in entries:
        name = entry["name"]
        if name not in layer.images | OWN_IMAGES:
            yield f"images: no container has the image {name}, but {sorted(layer.images)}"
        if [each["name"] for each in entries].count(name) > 1:
            yield f"images: {name} is named twice"
        if not {"newName", "newTag", "digest"} & {*entry}:
            yield f"images: nothing is new of {name}"
    new = {entry["name"]: entry["newName"] for entry in entries if "newName" in entry}
    layer.images = {new.get(name, name) for name in layer.images}


def _replacement_faults(folder: Path, own: dict[str, Any], layer: Layer) -> Iterator[str]:
    entries = list(own.get("replacements", []))
    for entry in own.get("replacements", []):
        if "path" in entry:
            entries += [each for part in _documents(folder / entry["path"]) for each in part]
    for entry in entries:
        for target in entry.get("targets", []):
            if not layer.meets(target["select"]):
                yield f"replacements: a target meets nothing: {target['select']}"
