"""Entries of kustomizations that kustomize takes without a word: each is planted, and found."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.k8s_manifests import (
    COMPONENTS,
    K8S,
    OVERLAYS,
    ROOT,
    parse,
    run_kustomize,
    write_overlay,
)
from tests.support.k8s_rules import RULES
from tests.support.k8s_rules_pods import references_resolve
from tests.support.k8s_sources import source_faults


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_entry_of_an_overlay_is_without_effect(overlay: str) -> None:
    assert source_faults(K8S / overlay) == []


def test_no_entry_of_a_component_is_without_effect() -> None:
    folders = [K8S / name for name in COMPONENTS]
    alone = {folder.name: source_faults(K8S / "base", folder) for folder in folders}
    assert {name: found for name, found in alone.items() if found} == {}
    assert source_faults(K8S / "base", *folders) == []


def test_a_prefix_and_a_suffix_reach_what_pods_name(tmp_path: Path) -> None:
    folder = write_overlay(tmp_path, (), "namePrefix: team-\nnameSuffix: -b")
    assert source_faults(folder) == []
    manifests = parse(run_kustomize(folder).stdout)
    claims = [m["metadata"]["name"] for m in manifests if m["kind"] == "PersistentVolumeClaim"]
    assert claims == ["team-truthgpt-model-cache-b"]
    assert list(references_resolve(manifests)) == []


EXAMPLE = "overlays/example/kustomization.yaml"
SETTINGS = "overlays/example/settings/kustomization.yaml"
BASE = "base/kustomization.yaml"
L4 = "components/gpu-l4/kustomization.yaml"
GATEWAY = "components/gateway/kustomization.yaml"
REDIS = "components/gcs-redis/kustomization.yaml"
FOLLOWED = "base/name-reference.yaml"
MISTAKES = [
    (EXAMPLE, "name: truthgpt-serve-cpu\n", "name: serve-cpu\n", "no container has the image"),
    (EXAMPLE, "- name: truthgpt-serve-cpu", "- name: truthgpt-serve-head", "named twice"),
    (EXAMPLE, "newName: registry.example.com/truthgpt-serve-cpu", "", "nothing is new"),
    (BASE, "truthgpt-serve-head", "truthgpt-serve-heads", "the image truthgpt-serve-heads"),
    (L4, "-serve-cuda", "-server-cuda", "components/gpu-l4: images"),
    (EXAMPLE, "kind: PersistentVolumeClaim", "kind: VolumeClaim", "meets nothing"),
    (EXAMPLE, "name: truthgpt-model-cache", "name: model-cache", "meets nothing"),
    (EXAMPLE, "group: ray.io", "group: ray.com", "the target of sizes.yaml"),
    (EXAMPLE, "name: truthgpt-engines", "name: engines", "the target of scrapes.yaml"),
    (REDIS, "name: truthgpt-ray", "name: ray", "the target of network-policy.yaml"),
    (GATEWAY, "kind: HTTPRoute", "kind: Route", "replacements: a target meets nothing"),
    (EXAMPLE, "    behavior: merge\n", "", "truthgpt-env is there already"),
    (SETTINGS, "    behavior: replace\n", "", "truthgpt-serve-file is there already"),
    (EXAMPLE, "name: truthgpt-env\n", "name: truthgpt-envs\n", "no ConfigMap truthgpt-envs"),
    (FOLLOWED, "Claim/claimName", "Claim/name", "truthgpt-model-cache is not followed"),
    (FOLLOWED, "kind: PersistentVolumeClaim", "kind: Claim", "truthgpt-model-cache is not"),
    (FOLLOWED, "Specs/template/spec/volumes", "Spec/template/spec/volumes", "at RayService/spec"),
    (FOLLOWED, "envFrom/configMapRef", "env/configMapRef", "truthgpt-env is not followed"),
    (FOLLOWED, "kind: RayService", "kind: RayCluster", "truthgpt-models is not followed"),
]
"""A file, a text, another for it, and a part of what is found in an overlay that has the file."""


@pytest.mark.parametrize(("file", "old", "new", "expected"), MISTAKES)
def test_entries_without_effect_are_found(
    file: str, old: str, new: str, expected: str, tmp_path: Path
) -> None:
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    shutil.copytree(K8S, tmp_path / "k8s")
    path = tmp_path / "k8s" / file
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    overlay = "overlays/ha" if file == REDIS else "overlays/example"
    assert expected in "\n".join(source_faults(tmp_path / "k8s" / overlay))


KUSTOMIZE = [
    ("components/gcs-redis/kustomization.yaml", "name: truthgpt-redis", "name: redis"),
    ("components/monitoring/kustomization.yaml", "name: truthgpt-engines", "name: engines"),
    ("base/name-reference.yaml", "template/spec/volumes/configMap", "template/spec/configMap"),
    ("components/serve-file/kustomization.yaml", "host: 0.0.0.0", "host: 127.0.0.1"),
    ("base/kustomization.yaml", "newTag: 0.1.0", 'newTag: ""'),
]
"""What kustomize takes without a word: references and replacements that meet nothing."""


@pytest.mark.parametrize(("file", "old", "new"), KUSTOMIZE)
def test_what_kustomize_does_not_say_is_found(
    file: str, old: str, new: str, tmp_path: Path
) -> None:
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    shutil.copytree(K8S, tmp_path / "k8s")
    path = tmp_path / "k8s" / file
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    overlay = tmp_path / "k8s" / "overlays" / "ha" / "kustomization.yaml"
    overlay.write_text(overlay.read_text().replace("namespace: truthgpt\n", ""))
    done = run_kustomize(overlay.parent)
    assert done.returncode == 0, done.stderr
    manifests = parse(done.stdout)
    assert [fault for rule in RULES for fault in rule(manifests)] != []
