"""Dashboards and alerts ask for metrics that exist, and fit where they are put."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from tests.support.k8s_manifests import K8S, build
from tests.support.k8s_promql import expression_faults, parse, result_labels, selectors
from tests.support.programs import find_program

MONITORING = K8S / "components" / "monitoring"
ANNOTATION_BYTES = 256 * 1024
"""What Kubernetes lets all annotations of an object have, where `kubectl apply` keeps a copy."""
RULES = yaml.safe_load((MONITORING / "rules.yaml").read_text(encoding="utf-8"))
RECORDED = {
    rule["record"]: rule["expr"]
    for group in RULES["spec"]["groups"]
    for rule in group["rules"]
    if "record" in rule
}


def load_generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "make_dashboards", MONITORING / "make_dashboards.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def dashboards() -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(MONITORING.glob("dashboards/*.json"))]


def expressions() -> list[str]:
    found = [
        target["expr"]
        for dashboard in dashboards()
        for panel in dashboard["panels"]
        for target in panel["targets"]
    ]
    found += [rule["expr"] for group in RULES["spec"]["groups"] for rule in group["rules"]]
    return found


@pytest.mark.parametrize("expression", sorted(set(expressions())))
def test_metrics_exist(expression: str) -> None:
    assert selectors(parse(expression)) != []
    assert list(expression_faults(expression, RECORDED)) == []


@pytest.mark.parametrize(
    "expression",
    [
        "ray_serve_num_http_request_total",
        "ray_serve_deployment_healthy_replicas",
        "ray_node_cpu_utilisation",
        "vllm:time_to_first_token_ms_bucket",
        "truthgpt_images_frames_total",
        "truthgpt:error:ratio5m",
        "truthgpt_key_requests",
        'truthgpt_key_tokens_total{outcome="ok"}',
        "kube_pods",
        "sum by (app) (ray_serve_application_status)",
        'ray_serve_application_status{app="echo"}',
        "ray_node_gram_used * on (gpu) ray_node_gram_available",
        "rate(ray_serve_num_http_requests_total)",
        "sum(",
    ],
)
def test_what_does_not_exist_is_found(expression: str) -> None:
    assert list(expression_faults(expression, RECORDED)) != []


def test_labels_of_results_are_those_that_aggregation_leaves() -> None:
    by = "sum by (application) (ray_serve_application_status) > 1"
    assert result_labels(by, {}) == {"application"}
    assert "application" in (result_labels("ray_serve_application_status == 1", {}) or set())
    assert "pod" not in (result_labels("sum without (pod) (up)", {"x": "y"}) or set())
    assert result_labels("sum(up)", {}) == set()


def test_each_alert_has_its_section_of_what_to_do() -> None:
    rules = [rule for group in RULES["spec"]["groups"] for rule in group["rules"]]
    alerts = [rule["alert"] for rule in rules if "alert" in rule]
    page = (K8S.parent / "docs" / "alerts.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## (\w+)\n\n(.+?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))
    assert list(sections) == alerts
    assert all("1. " in text for text in sections.values())


def test_prometheus_takes_the_rules(tmp_path: Path) -> None:
    promtool = find_program("promtool")
    if promtool is None:
        pytest.skip("needs promtool, which also reads the templates of texts: Debian's prometheus")
    rules = tmp_path / "rules.yaml"
    rules.write_text(yaml.safe_dump({"groups": RULES["spec"]["groups"]}), encoding="utf-8")
    done = subprocess.run(
        [promtool, "check", "rules", str(rules)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_the_scrapes_of_the_page_are_those_that_alerts_read() -> None:
    page = (K8S.parent / "docs" / "metrics.md").read_text(encoding="utf-8")
    block = re.search(r"```yaml\n(scrape_configs:.+?)```", page, re.DOTALL)
    assert block is not None
    names = [job["job_name"] for job in yaml.safe_load(block[1])["scrape_configs"]]
    rules = [rule["expr"] for group in RULES["spec"]["groups"] for rule in group["rules"]]
    read = {job for rule in rules for job in re.findall(r'job=~"([^"]+)"', rule)}
    assert len(read) == len(names) == 2
    assert all(any(re.fullmatch(job, name) for name in names) for job in read)


def test_ray_says_what_a_pods_disk_has() -> None:
    """Else `ray_node_disk_free` is 1 in every Pod, and its alert never fires."""
    reporter = importlib.util.find_spec("ray.dashboard.modules.reporter")
    assert reporter is not None
    assert reporter.origin is not None
    switch = "RAY_DASHBOARD_ENABLE_K8S_DISK_USAGE"
    agent = Path(reporter.origin).with_name("reporter_agent.py").read_text(encoding="utf-8")
    assert f'os.environ.get("{switch}") == "1"' in agent
    manifests = build("overlays/ha")
    [given] = [
        manifest["data"]
        for manifest in manifests
        if manifest["kind"] == "ConfigMap" and switch in manifest["data"]
    ]
    assert given[switch] == "1"


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
