"""Writes the Grafana dashboards of dashboards.yaml, each in one line so that it fits an annotation.

Run it after a change: `python k8s/components/monitoring/make_dashboards.py`. Knows Grafana's
format, not the metrics; a test holds those against Ray's and vLLM's own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
COLUMNS = 2
WIDTH = 24 // COLUMNS
HEIGHT = 8

Dashboard = dict[str, Any]


def read_dashboards() -> list[Dashboard]:
    """Returns what dashboards.yaml has: name, title, variables and panels of each."""
    found: list[Dashboard] = yaml.safe_load((HERE / "dashboards.yaml").read_text(encoding="utf-8"))
    return found


def to_json(dashboard: Dashboard) -> str:
    """Returns Grafana's JSON of a dashboard, in one line."""
    model = {
        "uid": "truthgpt-" + dashboard["name"],
        "title": dashboard["title"],
        "tags": ["truthgpt-serve"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": _variables(dashboard)},
        "annotations": {"list": []},
        "panels": [_panel(index, panel) for index, panel in enumerate(dashboard["panels"])],
    }
    return json.dumps(model, separators=(",", ":")) + "\n"


def _variables(dashboard: Dashboard) -> list[dict[str, Any]]:
    source: dict[str, Any] = {
        "name": "datasource",
        "label": "Prometheus",
        "type": "datasource",
        "query": "prometheus",
    }
    others = [
        {
            "name": name,
            "type": "query",
            "datasource": DATASOURCE,
            "query": {"query": query, "refId": name},
            "refresh": 2,
            "includeAll": True,
            "multi": True,
            "allValue": ".*",
            "current": {"text": "All", "value": "$__all"},
        }
        for name, query in dashboard["variables"].items()
    ]
    return [source, *others]


def _panel(index: int, panel: dict[str, Any]) -> dict[str, Any]:
    row, column = divmod(index, COLUMNS)
    return {
        "id": index + 1,
        "type": "timeseries",
        "title": panel["title"],
        "description": panel["text"],
        "datasource": DATASOURCE,
        "gridPos": {"x": column * WIDTH, "y": row * HEIGHT, "w": WIDTH, "h": HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel["unit"], "min": 0}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}},
        "targets": [
            {
                "refId": chr(ord("A") + number),
                "datasource": DATASOURCE,
                "expr": expression,
                "legendFormat": legend,
            }
            for number, (legend, expression) in enumerate(panel["queries"].items())
        ],
    }


def main() -> None:
    """Writes all dashboards."""
    folder = HERE / "dashboards"
    folder.mkdir(exist_ok=True)
    for dashboard in read_dashboards():
        (folder / (dashboard["name"] + ".json")).write_text(to_json(dashboard), encoding="utf-8")


if __name__ == "__main__":
    main()
