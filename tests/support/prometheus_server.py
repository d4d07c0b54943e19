"""A real Prometheus that scrapes a service, and what the panels of dashboards find there."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.support.programs import find_program
from truthgpt_serve.cluster.ports import free_port

START_S = 60.0


@dataclass(frozen=True)
class Target:
    """A page that is scraped.

    Attributes:
        job: The label `job`.
        url: Its address, `http://host:port/path`.
        labels: Further labels of its series.
        key: The API key that it asks for.
    """

    job: str
    url: str
    labels: Mapping[str, str]
    key: str = ""


@dataclass(frozen=True)
class Prometheus:
    """A running server."""

    url: str

    def query(self, expression: str) -> list[Any]:
        """Returns the series of an expression, as they are now."""
        answer = httpx.get(f"{self.url}/api/v1/query", params={"query": expression}, timeout=30)
        assert answer.status_code == 200, answer.text
        found: list[Any] = answer.json()["data"]["result"]
        return found

    def targets(self) -> dict[str, str]:
        """Returns what is wrong with each target, by its address; nothing if all is well."""
        answer = httpx.get(f"{self.url}/api/v1/targets", timeout=30)
        active = answer.json()["data"]["activeTargets"]
        return {each["scrapeUrl"]: each["lastError"] or each["health"] for each in active}


def panels(dashboard: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yields title, legend and expression of each query; every variable stands for all."""
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            expression = re.sub(r"\$\w+", ".*", target["expr"])
            yield panel["title"], target["legendFormat"], expression


def is_empty(series: Sequence[Any]) -> bool:
    """Returns whether a result has no number: what was divided by nothing is none."""
    return all(one["value"][1] == "NaN" for one in series)


@contextmanager
def running_prometheus(folder: Path, targets: Sequence[Target]) -> Iterator[Prometheus]:
    """Runs a server that scrapes every 2 s; skips the test where there is none.

    Args:
        folder: Where its files are.
        targets: What it scrapes.
    """
    program = find_program("prometheus")
    if program is None:
        pytest.skip("needs prometheus (Debian: apt-get install prometheus)")
    port, file = free_port(), folder / "prometheus.yml"
    file.write_text(yaml.safe_dump(_configuration(targets)), encoding="utf-8")
    command = [
        program,
        f"--config.file={file}",
        f"--storage.tsdb.path={folder / 'series'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=error",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    server = Prometheus(f"http://127.0.0.1:{port}")
    try:
        deadline = time.monotonic() + START_S
        while not _is_ready(server.url):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield server
    finally:
        process.terminate()
        process.wait(START_S)


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/-/ready", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def _configuration(targets: Sequence[Target]) -> dict[str, Any]:
    jobs = []
    for number, target in enumerate(targets):
        url = httpx.URL(target.url)
        place = {"targets": [f"{url.host}:{url.port}"], "labels": dict(target.labels)}
        relabel = [{"target_label": "job", "replacement": target.job}]
        job: dict[str, Any] = {
            "job_name": f"job-{number}",
            "metrics_path": url.path,
            "static_configs": [place],
            "relabel_configs": relabel,
        }
        if target.key:
            job["authorization"] = {"credentials": target.key}
        jobs.append(job)
    return {"global": {"scrape_interval": "2s", "scrape_timeout": "2s"}, "scrape_configs": jobs}
