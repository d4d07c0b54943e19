"""Dashboards and alerts ask for metrics that exist, and fit where they are put."""

from __future__ import annotations

import functools
import importlib.util
import json
import re
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from deployments.hf_diffusers.metrics import BY_MODULE, EVENTS, PREFIX
from tests.support.k8s_manifests import K8S, build, groups, one, ray_container

MONITORING = K8S / "components" / "monitoring"
ANNOTATION_BYTES = 256 * 1024
"""What Kubernetes lets all annotations of an object have, where `kubectl apply` keeps a copy."""
METRIC = re.compile(r"\b((?:ray_|vllm:|truthgpt_|autoscaler_)[a-z0-9_:]+)\s*(?=[{\[\s)/<>=*+-]|$)")
SUFFIX = re.compile(r"_(bucket|count|sum|total)$")


def load_generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "make_dashboards", MONITORING / "make_dashboards.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def source_text(package: str, *folders: str) -> str | None:
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    root = Path(spec.submodule_search_locations[0])
    files = [path for folder in folders for path in (root / folder).rglob("*.py")]
    return "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in files)


def exists(metric: str) -> bool:
    """Tells whether Ray, vLLM or this product has a metric of this name, by their source."""
    short = SUFFIX.sub("", metric)
    if metric.startswith(PREFIX):
        own = {"jobs", *BY_MODULE, *EVENTS}
        return short.removeprefix(PREFIX) in own
    if metric.startswith("vllm:"):
        text = source_text("vllm", "v1/metrics")
        return text is None or f'"{short}"' in text
    if metric.startswith("ray_serve_"):
        text = source_text("ray", "serve/_private")
        names = [metric.removeprefix("ray_"), short.removeprefix("ray_")]
        names += [name.replace("_http_", "_{protocol_name}_") for name in names]
    else:
        text = source_text("ray", "dashboard/modules/reporter")
        names = [metric.removeprefix("ray_")]
    return text is not None and any(f'"{name}"' in text for name in names)


def dashboards() -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(MONITORING.glob("dashboards/*.json"))]


def expressions() -> list[str]:
    found = [
        target["expr"]
        for dashboard in dashboards()
        for panel in dashboard["panels"]
        for target in panel["targets"]
    ]
    rules = yaml.safe_load((MONITORING / "rules.yaml").read_text(encoding="utf-8"))
    found += [rule["expr"] for group in rules["spec"]["groups"] for rule in group["rules"]]
    return found


@pytest.mark.parametrize("expression", sorted(set(expressions())))
def test_metrics_exist(expression: str) -> None:
    metrics = [name for name in METRIC.findall(expression) if not name.startswith("ray_io_")]
    recorded = "truthgpt:" in expression or expression.startswith("up{")
    assert metrics or recorded
    assert [name for name in metrics if not exists(name)] == []
    for opening, closing in ("()", "[]", "{}"):
        assert expression.count(opening) == expression.count(closing)


@pytest.mark.parametrize(
    "metric",
    [
        "ray_serve_num_http_request_total",
        "ray_serve_deployment_healthy_replicas",
        "ray_node_cpu_utilisation",
        "vllm:time_to_first_token_ms_bucket",
        "truthgpt_images_frames_total",
    ],
)
def test_metrics_that_do_not_exist_are_found(metric: str) -> None:
    assert not exists(metric)


def test_dashboards_are_those_of_the_generator() -> None:
    generator = load_generator()
    written = {path.stem: path.read_text() for path in MONITORING.glob("dashboards/*.json")}
    dashboards_now = generator.read_dashboards()
    assert written == {each["name"]: generator.to_json(each) for each in dashboards_now}


def test_dashboards_fit_an_annotation() -> None:
    for manifest in build("overlays/ha"):
        assert len(json.dumps(manifest).encode()) < ANNOTATION_BYTES
    board = one_config("truthgpt-dashboards")
    assert board["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert all(text.count("\n") == 1 for text in board["data"].values())


def one_config(prefix: str) -> dict[str, Any]:
    return next(m for m in build("overlays/ha") if m["metadata"]["name"].startswith(prefix))


def test_variables_of_a_dashboard_are_those_that_its_panels_use() -> None:
    for dashboard in dashboards():
        declared = {entry["name"] for entry in dashboard["templating"]["list"]} - {"datasource"}
        used = set(re.findall(r"\$(\w+)", json.dumps([p["targets"] for p in dashboard["panels"]])))
        assert used == declared, dashboard["title"]
        ids = [panel["id"] for panel in dashboard["panels"]]
        assert len(set(ids)) == len(ids)


def test_the_pod_monitor_scrapes_ports_that_pods_have() -> None:
    manifests = build("overlays/ha")
    service = one(manifests, "RayService")
    monitor = one(manifests, "PodMonitor")["spec"]
    head = {port["name"] for port in ray_container(dict(groups(service))["headgroup"])["ports"]}
    assert {endpoint["port"] for endpoint in monitor["podMetricsEndpoints"]} <= head
    for name, group in groups(service):
        labels = group["template"]["metadata"]["labels"]
        assert monitor["selector"]["matchLabels"].items() <= labels.items(), name


def test_the_policy_lets_prometheus_reach_what_it_scrapes() -> None:
    manifests = build("overlays/ha")
    policy = one(manifests, "NetworkPolicy", "truthgpt-ray")["spec"]
    head = dict(groups(one(manifests, "RayService")))["headgroup"]
    ports = {port["name"]: port["containerPort"] for port in ray_container(head)["ports"]}
    monitor = one(manifests, "PodMonitor")["spec"]
    wanted = {ports[endpoint["port"]] for endpoint in monitor["podMetricsEndpoints"]}
    [rule] = [rule for rule in policy["ingress"] if "truthgpt.io/monitoring" in json.dumps(rule)]
    assert wanted | {8000} == {port["port"] for port in rule["ports"]}
