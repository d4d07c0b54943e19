"""Writes the components of worker groups with GPUs from gpus.yaml and the files in template/.

Run it after a change: `python k8s/gpus/make_gpu_groups.py`.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from string import Template
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
COMPONENTS = HERE.parent / "components"
LABELS = {
    "product": "nvidia.com/gpu.product",
    "gke": "cloud.google.com/gke-accelerator",
    "karpenter": "karpenter.k8s.aws/instance-gpu-name",
    "aks": "node.kubernetes.io/instance-type",
}
"""Labels of nodes by the keys of gpus.yaml."""
STORAGE_MARGIN_GIB = 5
"""What a Pod may write besides its emptyDir: the logs of its containers."""

Gpu = dict[str, Any]


def read_gpus() -> dict[str, Gpu]:
    """Returns what gpus.yaml says of each group."""
    found: dict[str, Gpu] = yaml.safe_load((HERE / "gpus.yaml").read_text(encoding="utf-8"))
    return found


def write_group(name: str, gpu: Gpu) -> dict[str, str]:
    """Returns the files of a group's component, by name."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        version = tomllib.load(file)["project"]["version"]
    values = {
        **{key: gpu[key] for key in ("text", "cpu", "memory", "gpus", "tmp", "most")},
        "name": name,
        "labels": _node_labels(gpu),
        "storage": gpu["tmp"] + STORAGE_MARGIN_GIB,
        "version": version,
    }
    return {
        path.name: Template(path.read_text(encoding="utf-8")).substitute(values)
        for path in sorted((HERE / "template").glob("*.yaml"))
    }


def _node_labels(gpu: Gpu) -> str:
    terms = [
        f"                - matchExpressions:\n"
        f"                    - key: {label}\n"
        f"                      operator: In\n"
        f"                      values: [{', '.join(gpu[key])}]"
        for key, label in LABELS.items()
        if key in gpu
    ]
    return "\n".join(terms)


def main() -> None:
    """Writes all groups."""
    for name, gpu in read_gpus().items():
        folder = COMPONENTS / f"gpu-{name}"
        folder.mkdir(exist_ok=True)
        for file, text in write_group(name, gpu).items():
            (folder / file).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
