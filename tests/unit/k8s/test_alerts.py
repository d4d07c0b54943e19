"""Alerts fire on what they are for, and on nothing else: by Prometheus' own test of rules."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from tests.support.k8s_manifests import K8S
from tests.support.programs import find_program

RULES = yaml.safe_load((K8S / "components/monitoring/rules.yaml").read_text(encoding="utf-8"))
RAY = 'job="ns/truthgpt-ray",namespace="ns"'
ENGINES = 'job="ns/truthgpt-engines",namespace="ns"'
REQUESTS = "ray_serve_num_http_requests_total{%s,application=%r,route=%r}"
ERRORS = "ray_serve_num_http_error_requests_total{%s,application=%r,route=%r,error_code=%r}"
STATUS = "ray_serve_application_status{%s,ray_io_cluster='c',application=%r}"
SERIES = {
    REQUESTS % (RAY, "good", "/"): "0+60x60",
    ERRORS % (RAY, "good", "/", "500"): "0+1x60",
    REQUESTS % (RAY, "bad", "/"): "0+60x60",
    ERRORS % (RAY, "bad", "/", "502"): "0+6x60",
    REQUESTS % (RAY, "probed", "/"): "0+60x60",
    REQUESTS % (RAY, "probed", "/-/healthz"): "0+60x60",
    ERRORS % (RAY, "probed", "/-/healthz", "503"): "0+60x60",
    ERRORS % (RAY, "busy", "/", "429"): "0+90x60",
    ERRORS % (RAY, "half-busy", "/", "429"): "0+30x60",
    STATUS % (RAY, "good"): "6x60",
    STATUS % (RAY, "failed"): "1x60",
    STATUS % (RAY, "slow"): "5x60",
    STATUS % (RAY, "started"): "5x20 6x40",
    f"truthgpt_quota_store_up{{{ENGINES},application='cut-off',replica='a'}}": "1x60",
    f"truthgpt_quota_store_up{{{ENGINES},application='cut-off',replica='b'}}": "1x10 0x50",
    f"truthgpt_quota_store_up{{{ENGINES},application='good',replica='c'}}": "1x60",
    f"truthgpt_keys_current{{{ENGINES},application='old',replica='a'}}": "1x60",
    f"truthgpt_keys_current{{{ENGINES},application='old',replica='b'}}": "1x10 0x50",
    f"truthgpt_keys_current{{{ENGINES},application='good',replica='c'}}": "1x60",
    f"truthgpt_usage_kept{{{ENGINES},application='full',replica='a'}}": "0x60",
    f"truthgpt_usage_kept{{{ENGINES},application='good',replica='c'}}": "1x60",
    f"up{{{RAY},pod='gone'}}": "0x60",
    f"up{{{RAY},pod='here'}}": "1x60",
    f"ray_node_disk_free{{{RAY},instance='full'}}": "5x60",
    f"ray_node_disk_usage{{{RAY},instance='full'}}": "95x60",
    f"ray_node_disk_free{{{RAY},instance='half'}}": "50x60",
    f"ray_node_disk_usage{{{RAY},instance='half'}}": "50x60",
}
CRITICAL, WARNING = ({"namespace": "ns", "severity": each} for each in ("critical", "warning"))
FIRING = {
    "TruthGPTApplicationFailing": CRITICAL | {"application": "bad"},
    "TruthGPTApplicationDown": CRITICAL | {"application": "failed", "ray_io_cluster": "c"},
    "TruthGPTApplicationStuck": WARNING | {"application": "slow", "ray_io_cluster": "c"},
    "TruthGPTQuotaStoreDown": WARNING | {"application": "cut-off"},
    "TruthGPTKeysNotRead": CRITICAL | {"application": "old"},
    "TruthGPTUsageNotKept": WARNING | {"application": "full"},
    "TruthGPTTooManyRequests": WARNING | {"application": "busy"},
    "TruthGPTExporterDown": WARNING | {"pod": "gone", "job": "ns/truthgpt-ray"},
    "TruthGPTNodeDiskFull": WARNING | {"instance": "full", "job": "ns/truthgpt-ray"},
}
"""The labels of what fires 45 minutes into `SERIES`; others are silent."""


def write_test(folder: Path) -> Path:
    """Writes what `promtool test rules` reads; texts of alerts are not compared."""
    groups = RULES["spec"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    for rule in rules:
        rule.pop("annotations", None)
    expected = [
        {
            "eval_time": "45m",
            "alertname": rule["alert"],
            "exp_alerts": [{"exp_labels": found}] if (found := FIRING.get(rule["alert"])) else [],
        }
        for rule in rules
        if "alert" in rule
    ]
    series = [{"series": name, "values": values} for name, values in SERIES.items()]
    case = {"interval": "1m", "input_series": series, "alert_rule_test": expected}
    (folder / "rules.yaml").write_text(yaml.safe_dump({"groups": groups}), encoding="utf-8")
    test = {"rule_files": ["rules.yaml"], "evaluation_interval": "30s", "tests": [case]}
    path = folder / "test.yaml"
    path.write_text(yaml.safe_dump(test), encoding="utf-8")
    return path


def test_alerts_fire_where_they_should(tmp_path: Path) -> None:
    promtool = find_program("promtool")
    if promtool is None:
        pytest.skip("needs promtool: Debian's prometheus")
    command = [promtool, "test", "rules", str(write_test(tmp_path))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
