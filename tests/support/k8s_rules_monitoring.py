"""Rules about scrapes, alerts and dashboards: what they read is there, and is called that.

Each takes manifests and returns its faults.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from tests.support.k8s_links import namespace_of, pods, selects, serve_file, serve_service
from tests.support.k8s_manifests import Manifest
from tests.support.k8s_promql import expression_faults, result_labels

ENGINE_METRICS = re.compile(r"(/models/[^/]+)/metrics")
EXPORTERS = ("metrics", "as-metrics", "dash-metrics")


def scrapes_find_their_targets(manifests: list[Manifest]) -> Iterator[str]:
    """Monitors name ports that their Pods have, and paths of applications; targets are Services."""
    routes = {
        application["route_prefix"]: application["name"]
        for application in serve_file(manifests).get("applications", [])
    }
    for monitor in (m for m in manifests if m["kind"] == "PodMonitor"):
        name = monitor["metadata"]["name"]
        chosen = [p for p in pods(manifests) if selects(monitor["spec"]["selector"], p.labels)]
        for endpoint in monitor["spec"]["podMetricsEndpoints"]:
            if not any(endpoint["port"] in pod.ports for pod in chosen):
                yield f"{name}: no Pod has a port {endpoint['port']}"
            yield from (f"{name}: {fault}" for fault in _endpoint_faults(endpoint, routes))
    service, port = serve_service(manifests)
    wanted = f"{service}.{namespace_of(manifests)}.svc:{port}"
    for scrape in (m for m in manifests if m["kind"] == "ScrapeConfig"):
        name, spec = scrape["metadata"]["name"], scrape["spec"]
        for target in (t for config in spec.get("staticConfigs", []) for t in config["targets"]):
            if target.replace(".svc.cluster.local:", ".svc:") != wanted:
                yield f"{name}: target {target} is not {wanted}"
        if _application_of(spec.get("metricsPath", ""), routes) is None:
            yield f"{name}: no application answers {spec.get('metricsPath')}"


def _endpoint_faults(endpoint: dict[str, Any], routes: dict[str, str]) -> Iterator[str]:
    port, path = endpoint["port"], endpoint.get("path", "/metrics")
    application = _application_of(path, routes)
    if (path == "/metrics") != (port in EXPORTERS):
        yield f"{path} at port {port}"
    elif path != "/metrics" and application is None:
        yield f"no application answers {path}"
    elif path != "/metrics":
        given = {entry["targetLabel"]: entry for entry in endpoint.get("relabelings", [])}
        label = given.get("application", {}).get("replacement")
        if label != application:
            yield f"the label application of {path} is {label}"


def _application_of(path: str, routes: dict[str, str]) -> str | None:
    engine = ENGINE_METRICS.fullmatch(path)
    return routes.get(engine[1]) if engine else None


def monitors_are_found(manifests: list[Manifest]) -> Iterator[str]:
    """Monitors and rules carry one `release`, by which kube-prometheus-stack picks them."""
    kinds = ("PodMonitor", "ServiceMonitor", "ScrapeConfig", "PrometheusRule")
    found = {
        manifest["metadata"]["name"]: manifest["metadata"].get("labels", {}).get("release")
        for manifest in manifests
        if manifest["kind"] in kinds
    }
    if len(set(found.values())) > 1 or None in found.values():
        yield f"labels `release`: {found}"


def expressions_read_metrics(manifests: list[Manifest]) -> Iterator[str]:
    """Alerts and panels are PromQL about metrics and labels that are there, texts too."""
    rules = [
        rule
        for manifest in manifests
        if manifest["kind"] == "PrometheusRule"
        for group in manifest["spec"]["groups"]
        for rule in group["rules"]
    ]
    recorded = {rule["record"]: rule["expr"] for rule in rules if "record" in rule}
    for rule in rules:
        name = rule.get("alert", rule.get("record"))
        faults = list(expression_faults(rule["expr"], recorded))
        yield from (f"{name}: {fault}" for fault in faults)
        if "alert" in rule and not faults:
            has = result_labels(rule["expr"], recorded) or set()
            used = set(re.findall(r"\$labels\.(\w+)", json.dumps(rule.get("annotations", {}))))
            yield from (f"{name}: its text names {each}" for each in sorted(used - has))
    for title, expression in _panels(manifests):
        yield from (f"{title}: {fault}" for fault in expression_faults(expression, recorded))


def _panels(manifests: list[Manifest]) -> Iterator[tuple[str, str]]:
    for manifest in manifests:
        labels = manifest["metadata"].get("labels", {})
        if manifest["kind"] == "ConfigMap" and labels.get("grafana_dashboard"):
            for text in manifest["data"].values():
                for panel in json.loads(text)["panels"]:
                    for target in panel["targets"]:
                        yield panel["title"], target["expr"]
