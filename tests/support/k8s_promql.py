"""Reads PromQL with a parser of it, and knows the labels of the metrics that this service has.

Names and labels come from the source of Ray and vLLM as they are installed, from the product, and
for kube-state-metrics, the kubelet and the operator from the table below.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import promql_parser

from deployments.hf_diffusers.metrics import BY_MODULE, EVENTS, PREFIX
from truthgpt_serve.access.counting.redis_counters import RedisCounters
from truthgpt_serve.access.identity import Limits
from truthgpt_serve.access.key_metrics import KeyMetrics, keys_state, usage_state
from truthgpt_serve.access.meter import Ended
from truthgpt_serve.usage.counted import Usage

OTHERS = {
    "kuberay_service_condition_ready": {"name", "condition", "uid"},
    "kuberay_service_condition_upgrade_in_progress": {"name", "condition", "uid"},
    "kube_statefulset_status_replicas_ready": {"statefulset"},
    "kube_pod_status_reason": {"reason", "uid"},
    "kubelet_volume_stats_available_bytes": {"persistentvolumeclaim"},
    "kubelet_volume_stats_capacity_bytes": {"persistentvolumeclaim"},
    "up": set(),
}
"""Metrics of others: KubeRay's `ray_service_metrics.go`, kube-state-metrics' documentation."""
SCRAPED = {"job", "instance", "namespace", "pod", "container", "endpoint"}
"""What Prometheus and its operator add, of a PodMonitor."""
RELABELED = {"ray_io_cluster", "ray_io_group"}
RAY_COMMON = {"SessionName", "NodeAddress", "Version", "WorkerId", "Component", "ReporterAgent"}
REPLICA = {"deployment", "replica", "application", "handle"}
"""What ray.serve.metrics adds within a replica."""
OWN = {"module", "state", "outcome", "application", "replica"}
KEYS = {"key", "application", "replica", "le"}
KEY_LABELS = {
    "requests": {"outcome"},
    "refusals": {"reason"},
    "tokens": {"kind"},
    "limit": {"limit"},
}
"""Further labels of the metrics of keys."""
VLLM = {"model_name", "engine", "application", "replica", "le"}
FAMILY_SUFFIX = re.compile(r"_(bucket|count|sum|total)$")


def parse(expression: str) -> promql_parser.Expr:
    """Returns the tree of an expression; variables of Grafana stand for text.

    Raises:
        ValueError: It is no PromQL.
    """
    return promql_parser.parse(expression.replace("$__rate_interval", "5m"))


def selectors(tree: Any) -> list[promql_parser.VectorSelector]:
    """Returns everything that reads series."""
    found: list[promql_parser.VectorSelector] = []

    def visit(node: Any) -> bool:
        if isinstance(node, promql_parser.VectorSelector):
            found.append(node)
        return True

    promql_parser.walk(tree, visit)
    return found


def expression_faults(expression: str, recorded: dict[str, str]) -> Iterator[str]:
    """Yields what is wrong with an expression: its form, a metric or a label that nothing has.

    Args:
        expression: PromQL.
        recorded: Expressions of recording rules, by the names that they record.
    """
    try:
        tree = parse(expression)
    except ValueError as error:
        yield f"{expression.strip()[:80]}: {error}"
        return
    yield from _label_faults(tree, recorded)


def _label_faults(tree: Any, recorded: dict[str, str]) -> Iterator[str]:
    known: set[str] = set()
    for selector in selectors(tree):
        name = selector.name or ""
        labels = labels_of(name, recorded)
        if labels is None:
            yield f"nothing has the metric {name}"
            continue
        known |= labels
        for matcher in selector.matchers.matchers:
            if matcher.name not in labels:
                yield f"{name} has no label {matcher.name}"
    for label in _grouping(tree):
        if label not in known:
            yield f"no metric of it has the label {label}"


def _grouping(tree: Any) -> list[str]:
    found: list[str] = []

    def visit(node: Any) -> bool:
        if isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
            found.extend(node.modifier.labels)
        if isinstance(node, promql_parser.BinaryExpr) and node.modifier is not None:
            matching = node.modifier.matching
            found.extend(matching.labels if matching is not None else [])
        return True

    promql_parser.walk(tree, visit)
    return found


def result_labels(expression: str, recorded: dict[str, str]) -> set[str] | None:
    """Returns the labels that a result has, or None where a metric is unknown."""
    return _result(parse(expression), recorded)


def _result(tree: Any, recorded: dict[str, str]) -> set[str] | None:
    if isinstance(tree, promql_parser.AggregateExpr):
        modifier = tree.modifier
        if modifier is None:
            return set()
        if modifier.type == promql_parser.AggModifierType.By:
            return set(modifier.labels)
        return (_result(tree.expr, recorded) or set()) - set(modifier.labels)
    if isinstance(tree, promql_parser.BinaryExpr):
        left = _result(tree.lhs, recorded)
        return left if left else _result(tree.rhs, recorded)
    if isinstance(tree, promql_parser.VectorSelector):
        return labels_of(tree.name or "", recorded)
    if isinstance(tree, promql_parser.Call):
        return _result(tree.args[-1], recorded) if tree.args else set()
    inner = getattr(tree, "expr", None) or getattr(tree, "vector_selector", None)
    return _result(inner, recorded) if inner is not None else set()


def labels_of(metric: str, recorded: dict[str, str]) -> set[str] | None:
    """Returns the labels that a metric's series have, or None: nothing has the metric."""
    if metric in recorded:
        others = {name: text for name, text in recorded.items() if name != metric}
        try:
            return result_labels(recorded[metric], others)
        except ValueError:
            return None  # a fault of its own
    if metric in OTHERS:
        return OTHERS[metric] | SCRAPED | (RELABELED if metric == "up" else set())
    short = FAMILY_SUFFIX.sub("", metric)
    suffix = metric[len(short) :]
    extra = {"le"} if suffix == "_bucket" else set()
    if metric.startswith(PREFIX):
        is_own = short.removeprefix(PREFIX) in {"jobs", *BY_MODULE, *EVENTS}
        return OWN | SCRAPED | RELABELED if is_own else None
    if metric.startswith("truthgpt_"):
        return _labels_of_keys(metric)
    if metric.startswith("vllm:"):
        text = source_text("vllm", "v1/metrics")
        return (VLLM | SCRAPED | RELABELED) if text is None or f'"{short}"' in text else None
    if not metric.startswith("ray_"):
        return None
    table = ray_metrics()
    for name in (metric.removeprefix("ray_"), short.removeprefix("ray_")):
        if name in table:
            return table[name] | RAY_COMMON | SCRAPED | RELABELED | extra
    return None


@functools.cache
def _own_names() -> frozenset[str]:
    """Returns the samples on a replica's page of keys."""
    metrics = KeyMetrics(
        RedisCounters("redis://127.0.0.1:1"),
        lambda: {"k": Limits(1)},
        [keys_state(lambda: True), usage_state(lambda: True)],
    )
    metrics.report(Ended("k", Usage(images=1, audio_s=1.0), 429, "refused", None, 0.0))
    page = metrics.page()
    names = re.findall(r"^(\w+)[ {]", page, re.MULTILINE)
    return frozenset(name for name in names if not name.endswith("_created"))


def _labels_of_keys(metric: str) -> set[str] | None:
    if metric not in _own_names():
        return None
    name = FAMILY_SUFFIX.sub("", metric).removeprefix("truthgpt_key_")
    labels = {"application", "replica"} if name.startswith("truthgpt") else KEYS
    return labels | KEY_LABELS.get(name, set()) | SCRAPED | RELABELED


@functools.cache
def source_text(package: str, folder: str) -> str | None:
    """Returns the Python source of a file or folder of an installed package, or None."""
    return "\n".join(path.read_text() for path in _files(package, folder)) or None


def _files(package: str, folder: str) -> list[Path]:
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return []
    place = Path(spec.submodule_search_locations[0]) / folder
    return [place] if place.is_file() else sorted(place.rglob("*.py"))


@functools.cache
def ray_metrics() -> dict[str, set[str]]:
    """Returns the labels of Ray's metrics, without `ray_`, as its Python source makes them."""
    found: dict[str, set[str]] = {}
    constants = _texts_of_names(_parse_file(*_files("ray", "dashboard/consts.py")))
    for path in [*_files("ray", "serve/_private"), *_files("ray", "dashboard/modules/reporter")]:
        tree = _parse_file(path)
        names = {**constants, **_texts_of_names(tree)}
        for call in ast.walk(tree):
            if isinstance(call, ast.Call) and _last_name(call.func) in _METRIC_CLASSES:
                for metric in _metric_names(call):
                    labels = _tag_keys(call, names)
                    if path.name in ("replica.py", "deployment_state.py"):
                        labels |= REPLICA
                    found[metric] = found.get(metric, set()) | labels
    return found


def _parse_file(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


_METRIC_CLASSES = ("Gauge", "Counter", "Histogram", "Sum")


def _last_name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _metric_names(call: ast.Call) -> list[str]:
    given = [*call.args[:1], *(k.value for k in call.keywords if k.arg == "name")]
    names = []
    for node in given:
        if isinstance(node, ast.Constant):
            names.append(str(node.value))
        elif isinstance(node, ast.JoinedStr):
            parts = [str(p.value) if isinstance(p, ast.Constant) else "http" for p in node.values]
            names.append("".join(parts))
    return names


def _tag_keys(call: ast.Call, names: dict[str, set[str]]) -> set[str]:
    given = [k.value for k in call.keywords if k.arg == "tag_keys"] + call.args[3:4]
    given += [] if given else call.args[2:3]
    labels: set[str] = set()
    for node in given:
        for part in ast.walk(node):
            if isinstance(part, ast.Constant) and isinstance(part.value, str):
                labels.add(part.value)
            elif isinstance(part, ast.Name | ast.Attribute):
                labels |= names.get(_last_name(part), set())
    return labels


def _texts_of_names(tree: ast.AST) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for node in ast.walk(tree):
        targets = node.targets if isinstance(node, ast.Assign) else []
        for target in targets:
            texts = {
                part.value
                for part in ast.walk(node.value)  # type: ignore[attr-defined] # an ast.Assign
                if isinstance(part, ast.Constant) and isinstance(part.value, str)
            }
            found[_last_name(target)] = found.get(_last_name(target), set()) | texts
    return found
