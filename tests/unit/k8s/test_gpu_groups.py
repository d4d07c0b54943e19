"""The components of GPU groups are those of k8s/gpus, and what it says of machines is kept."""

from __future__ import annotations

import importlib.util
from types import ModuleType

import pytest

from tests.support.k8s_manifests import COMPONENTS, K8S


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    path = K8S / "gpus" / "make_gpu_groups.py"
    spec = importlib.util.spec_from_file_location("make_gpu_groups", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_components_are_those_of_the_generator(generator: ModuleType) -> None:
    for name, gpu in generator.read_gpus().items():
        folder = K8S / "components" / f"gpu-{name}"
        there = {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}
        assert there == generator.write_group(name, gpu), name


def test_every_gpu_component_is_in_the_table(generator: ModuleType) -> None:
    groups = {f"components/gpu-{name}" for name in generator.read_gpus()}
    assert groups == {name for name in COMPONENTS if name.startswith("components/gpu-")}


def test_groups_differ_in_their_labels_of_nodes(generator: ModuleType) -> None:
    for key in generator.LABELS:
        values = [value for gpu in generator.read_gpus().values() for value in gpu.get(key, [])]
        assert values
        assert len(set(values)) == len(values), key
