"""Rules about scrapes, alerts and dashboards: what they read is there, and is called that.

Each takes manifests and returns its faults.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from tests.support.k8s_links import (
    Pod,
    namespace_of,
    pods,
    ray_pods,
    selects,
    serve_file,
    serve_service,
)
from tests.support.k8s_manifests import K8S, Manifest
from tests.support.k8s_promql import expression_faults, parse, result_labels, selectors

ENGINE_METRICS = re.compile(r"(/models/[^/]+)/metrics")
SEVERITIES = ("critical", "warning")
NOTICED = (
    "truthgpt:errors:ratio5m",
    'application_status{job=~".+/truthgpt-ray"}) <= 2',
    'application_status{job=~".+/truthgpt-ray"}) >= 3',
    "absent(ray_serve_application_status",
    "kuberay_service_condition_ready",
    "kuberay_service_condition_upgrade_in_progress",
    "kube_statefulset_status_replicas_ready",
    'kube_pod_status_reason{reason="Evicted"',
    "kubelet_volume_stats_available_bytes",
    'error_code="429"',
    "ray_serve_controller_control_loop_duration_s",
    "up{",
    "ray_node_disk_free",
)
"""What some alert must read."""
DASHBOARDS = {path.name for path in K8S.glob("components/monitoring/dashboards/*.json")}
TEMPLATE = re.compile(r"\{\{([^{}]*)\}\}")
TEMPLATE_FUNCTIONS = {
    "humanize",
    "humanize1024",
    "humanizeDuration",
    "humanizePercentage",
    "humanizeTimestamp",
    "title",
    "toUpper",
    "toLower",
    "printf",
}
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
            yield from (f"{name}: {fault}" for fault in _label_faults(endpoint, chosen))
    service, port = serve_service(manifests)
    wanted = f"{service}.{namespace_of(manifests)}.svc:{port}"
    for scrape in (m for m in manifests if m["kind"] == "ScrapeConfig"):
        name, spec = scrape["metadata"]["name"], scrape["spec"]
        for target in (t for config in spec.get("staticConfigs", []) for t in config["targets"]):
            if target.replace(".svc.cluster.local:", ".svc:") != wanted:
                yield f"{name}: target {target} is not {wanted}"
        if _application_of(spec.get("metricsPath", ""), routes) is None:
            yield f"{name}: no application answers {spec.get('metricsPath')}"


def _label_faults(endpoint: dict[str, Any], chosen: list[Pod]) -> Iterator[str]:
    """Labels of series come from labels that the Pods have; dashboards ask for the cluster."""
    known = {label for pod in chosen for label in pod.labels}
    meta = {"__meta_kubernetes_pod_label_" + re.sub(r"\W", "_", label) for label in known}
    targets = set()
    for entry in endpoint.get("relabelings", []):
        targets.add(entry["targetLabel"])
        sources = entry.get("sourceLabels", [])
        expected = f"__meta_kubernetes_pod_label_{entry['targetLabel']}"
        if "replacement" not in entry and (sources != [expected] or not {*sources} <= meta):
            yield f"{entry['targetLabel']} is made of {sources}"
    missing = {"ray_io_cluster"} - targets
    if endpoint["port"] in EXPORTERS:
        missing |= {"ray_io_group"} - targets
    if missing:
        yield f"series of port {endpoint['port']} have no {sorted(missing)}"


def exporters_are_scraped_once(manifests: list[Manifest]) -> Iterator[str]:
    """Every exporter of every Pod of Ray's is in one monitor; engines are read from one Pod."""
    monitors = [m["spec"] for m in manifests if m["kind"] == "PodMonitor"]
    for pod in ray_pods(manifests) if monitors else []:
        for port in EXPORTERS:
            times = [
                endpoint
                for monitor in monitors
                if selects(monitor["selector"], pod.labels)
                for endpoint in monitor["podMetricsEndpoints"]
                if endpoint["port"] == port
            ]
            if port in pod.ports and len(times) != 1:
                yield f"{pod.name}: port {port} is scraped {len(times)} times"
    for monitor in monitors:
        chosen = [p for p in ray_pods(manifests) if selects(monitor["selector"], p.labels)]
        names = {endpoint["port"] for endpoint in monitor["podMetricsEndpoints"]}
        if "serve" in names and [p.name for p in chosen] != ["headgroup"]:
            yield f"engines are read once for each of {[p.name for p in chosen]}"


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
    rules = _rules(manifests)
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


def expressions_name_objects(manifests: list[Manifest]) -> Iterator[str]:
    """Names of objects in alerts are those of objects in the build."""
    names: dict[str, set[str]] = {}
    for manifest in manifests:
        names.setdefault(manifest["kind"], set()).add(manifest["metadata"]["name"])
    space = namespace_of(manifests)
    jobs = {f"{space}/{name}" for name in names.get("PodMonitor", set())}
    service = {*names["RayService"]}
    there = {
        "job": jobs,
        "statefulset": names.get("StatefulSet", set()),
        "persistentvolumeclaim": names.get("PersistentVolumeClaim", set()),
        "name": service,
        "pod": {f"{name}-abcde-head-x" for name in service},
    }
    for rule in _rules(manifests):
        title = rule.get("alert", rule.get("record"))
        try:
            tree = parse(rule["expr"])
        except ValueError:
            continue  # expressions_read_metrics has it
        for selector in selectors(tree):
            for matcher in selector.matchers.matchers:
                known = there.get(matcher.name)
                if known and not any(re.fullmatch(matcher.value, name) for name in known):
                    yield f"{title}: no {matcher.name} {matcher.value}"
            needs_job = (selector.name or "").startswith(("ray_", "up"))
            if needs_job and "job" not in {m.name for m in selector.matchers.matchers}:
                yield f"{title}: series of other services too"


def alerts_are_whole(manifests: list[Manifest]) -> Iterator[str]:
    """Alerts wait, have a severity and say what to do; what must be noticed is."""
    rules = _rules(manifests)
    for rule in rules:
        texts = rule.get("annotations", {})
        if "alert" not in rule:
            if "record" not in rule:
                yield f"a rule has no name: {rule['expr'].strip()[:60]}"
        elif not rule.get("for") or rule.get("labels", {}).get("severity") not in SEVERITIES:
            yield f"{rule['alert']}: for {rule.get('for')}, {rule.get('labels')}"
        elif not texts.get("summary") or not texts.get("description"):
            yield f"{rule['alert']}: {sorted(texts)}"
    text = "\n".join(rule["expr"] for rule in rules if "alert" in rule)
    for metric in NOTICED if rules else ():
        if metric not in text:
            yield f"no alert reads {metric}"


def texts_of_alerts_fit(manifests: list[Manifest]) -> Iterator[str]:
    """Texts are templates that Prometheus reads; conditions are those that the operator writes."""
    for rule in _rules(manifests):
        title = rule.get("alert", rule.get("record"))
        for text in rule.get("annotations", {}).values():
            inner = TEMPLATE.findall(text)
            if text.count("{{") != len(inner) or text.count("}}") != len(inner):
                yield f"{title}: braces of {text!r}"
            for filters in (each.split("|")[1:] for each in inner):
                for name in {each.split()[0] for each in filters} - TEMPLATE_FUNCTIONS:
                    yield f"{title}: Prometheus has no function {name}"
        for value in re.findall(r'condition="([^"]*)"', rule["expr"]):
            if value not in ("true", "false", "unknown"):
                yield f"{title}: the operator writes no condition {value}"


def dashboards_are_found(manifests: list[Manifest]) -> Iterator[str]:
    """Dashboards have the label by which Grafana's sidecar finds them, and all are there."""
    for manifest in manifests:
        name = manifest["metadata"]["name"]
        if manifest["kind"] == "ConfigMap" and name.startswith("truthgpt-dashboards"):
            label = manifest["metadata"].get("labels", {}).get("grafana_dashboard")
            if label != "1":
                yield f"{name}: the label grafana_dashboard is {label}"
            if {*manifest["data"]} != DASHBOARDS:
                yield f"{name} has {sorted(manifest['data'])}"


def _rules(manifests: list[Manifest]) -> list[dict[str, Any]]:
    return [
        rule
        for manifest in manifests
        if manifest["kind"] == "PrometheusRule"
        for group in manifest["spec"]["groups"]
        for rule in group["rules"]
    ]


def _panels(manifests: list[Manifest]) -> Iterator[tuple[str, str]]:
    for manifest in manifests:
        labels = manifest["metadata"].get("labels", {})
        if manifest["kind"] == "ConfigMap" and labels.get("grafana_dashboard"):
            for text in manifest["data"].values():
                for panel in json.loads(text)["panels"]:
                    for target in panel["targets"]:
                        yield panel["title"], target["expr"]
