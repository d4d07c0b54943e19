"""k8s/README.md is true: its examples build, its names exist, its figures are measured."""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.k8s_manifests import (
    COMPONENTS,
    K8S,
    ROOT,
    build,
    one,
    ray_container,
)
from truthgpt_serve.validate import validate_file

TEXT = (K8S / "README.md").read_text(encoding="utf-8")
BLOCKS = [
    (language, textwrap.dedent(body))
    for language, body in re.findall(r"^ *```(\w+)\n(.*?)^ *```", TEXT, re.M | re.S)
]
CASES = json.loads((ROOT / "benchmarks/results/router_tax.json").read_text())["cases"]
STREAMS_OF_A_REPLICA = 5
EVENTS = 64


def example(word: str) -> str:
    [found] = [body for language, body in BLOCKS if language == "yaml" and word in body]
    return found


def cpu_ms(case: str) -> tuple[float, float]:
    """Returns server CPU of a request with the router, and of the server alone."""
    found = CASES[case]
    return (
        found["ours"]["server_cpu_ms_per_request"],
        found["reference"]["server_cpu_ms_per_request"],
    )


def rows(first_cell: str) -> list[list[str]]:
    """Returns the rows of the table whose header begins with this cell."""
    table = TEXT[TEXT.index(f"| {first_cell} |") :].split("\n\n")[0]
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in table.splitlines()]


def number(cell: str) -> float:
    return float(re.sub(r"[^\d.]", "", cell))


def test_links_and_paths_exist() -> None:
    links = re.findall(r"\]\(([^)#\s]+)\)", TEXT)
    assert [link for link in links if "://" not in link and not (K8S / link).exists()] == []
    paths = set(re.findall(r"`((?:base|components|overlays)(?:/[\w.-]+)?)`", TEXT))
    assert {path for path in paths if not (K8S / path).exists()} == set()
    assert paths >= {*COMPONENTS, "base"}
    overlays = {
        f"overlays/{path.parent.name}" for path in K8S.glob("overlays/*/kustomization.yaml")
    }
    assert paths >= overlays
    files = set(re.findall(r"`((?:configs|benchmarks)/[\w./-]+)`", TEXT))
    assert {path for path in files if not (ROOT / path).exists()} == set()


def test_the_example_environment_has_all_of_its_own() -> None:
    manifests = build("overlays/example")
    assert {m["metadata"].get("namespace") for m in manifests if m["kind"] != "Namespace"} == {
        one(manifests, "Namespace")["metadata"]["name"]
    }
    claim = one(manifests, "PersistentVolumeClaim")
    assert claim["spec"]["storageClassName"] == "your-read-write-many-class"
    service = one(manifests, "RayService")
    head = ray_container(service["spec"]["rayClusterConfig"]["headGroupSpec"])
    assert head["image"] == "registry.example.com/truthgpt-serve-head:0.1.0"
    ours = (K8S / "overlays/example/settings/serve.yaml").read_text(encoding="utf-8")
    served = service["spec"]["serveConfigV2"]
    assert served == ours.replace("host: 127.0.0.1", "host: 0.0.0.0")
    serve_file = next(m for m in manifests if "serve.yaml" in (m.get("data") or {}))
    assert serve_file["data"]["serve.yaml"] == ours  # which the prefetch Job reads
    models = next(m for m in manifests if "chat.yaml" in (m.get("data") or {}))
    assert {"chat.yaml", "story.yaml"} <= models["data"].keys()
    assert service["spec"]["rayClusterConfig"]["workerGroupSpecs"][1]["maxReplicas"] == 4


def test_the_files_of_an_environment_are_those_of_the_table() -> None:
    folder = K8S / "overlays/example"
    named = {path for row in rows("file") for path in re.findall(r"`([^`]+)`", row[0])}
    there = {str(path.relative_to(folder)) for path in folder.rglob("*.yaml")}
    assert named - {"settings/models/"} <= there
    assert {path.split("/")[0] for path in there} == {path.split("/")[0] for path in named}


def test_the_example_model_is_right(tmp_path: Path) -> None:
    (tmp_path / "model.yaml").write_text(example("label_selector"), encoding="utf-8")
    assert validate_file(tmp_path / "model.yaml").faults == []


def test_the_label_is_that_of_a_group() -> None:
    model: dict[str, Any] = yaml.safe_load(example("label_selector"))
    [(key, value)] = model["hardware"]["label_selector"].items()
    group = (K8S / "components" / f"gpu-{value}" / "worker-group.yaml").read_text()
    assert f"{key}: {value}" in group


@pytest.mark.parametrize("case", ["echo stream 32", "vllm stream 16", "vllm unary 16"])
def test_costs_are_those_measured(case: str) -> None:
    [row] = [row for row in rows("request") if f"`{case}`" in row[0]]
    ours, alone = cpu_ms(case)
    way = ours - alone
    assert row[1] == f"{ours:.2f}, {alone:.2f}"
    assert number(row[2]) == pytest.approx(way, abs=0.01)
    assert number(row[3].split(" a second")[0]) == round(1000 / way)


def test_the_planning_table_follows_from_them() -> None:
    ours, alone = cpu_ms("echo stream 32")
    table = rows("replicas")[2:]
    assert [number(row[0]) for row in table] == [1, 10, 100, 1000]
    for row in table:
        streams = number(row[0]) * STREAMS_OF_A_REPLICA
        cores = streams * (ours - alone) / 1000
        assert number(row[1]) == streams
        assert number(row[2]) == pytest.approx(cores, rel=0.1)
        routers = number(row[3].split(" ")[0])
        assert routers >= 2
        assert cores / routers <= 0.51
    events = re.findall(r"or ([\d,]+) events", TEXT)
    assert number(events[0]) == pytest.approx(EVENTS * 1000 / (ours - alone), rel=0.01)
