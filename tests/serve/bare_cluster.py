"""A cluster on which the modules of a folder deploy their applications, one after the other."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from benchmarks.local_cluster import (
    NUM_READY_ANSWERS,
    START_TIMEOUT_S,
    LocalCluster,
    router_application,
)
from truthgpt_serve.validate.applications import MODEL_IMPORT

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def bare_cluster(modules: Path, env: Mapping[str, str] | None = None) -> Iterator[LocalCluster]:
    """Starts Ray and no application.

    Args:
        modules: Where the replicas import users' classes from.
        env: Variables of all processes.
    """
    env = {"PYTHONPATH": f"{modules}:{ROOT}", **(env or {})}
    with LocalCluster(ROOT / "configs" / "ray.env", env=env) as cluster:
        yield cluster


def install(
    cluster: LocalCluster, applications: list[dict[str, Any]], *, timeout_s: float = START_TIMEOUT_S
) -> None:
    """Makes these and a router the cluster's applications; returns when no other is left."""
    applications = [*applications, router_application(cluster.port)]
    cluster.deploy(applications)
    cluster.wait_until_ready(timeout_s=timeout_s)
    deadline = time.monotonic() + timeout_s
    while not is_alone(cluster, applications):
        assert time.monotonic() < deadline, cluster.statuses()
        time.sleep(0.2)


def is_alone(cluster: LocalCluster, applications: list[dict[str, Any]]) -> bool:
    """Whether Serve has these applications only, and each replica of the router knows it."""
    if set(cluster.statuses()) != {application["name"] for application in applications}:
        return False
    models = {one["name"] for one in applications if one["import_path"] == MODEL_IMPORT}
    for _ in range(NUM_READY_ANSWERS):
        answer = httpx.get(f"{cluster.url}/ready", timeout=30)
        if answer.status_code != 200 or set(answer.json()["models"]) != models:
            return False
    return True
