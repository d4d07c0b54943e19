"""A cluster on which the modules of a folder deploy their applications, one after the other."""

from __future__ import annotations

import time
from collections.abc import Iterator
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

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def bare_cluster(modules: Path) -> Iterator[LocalCluster]:
    """Starts Ray and no application; the replicas import users' classes from `modules`."""
    env = {"PYTHONPATH": f"{modules}:{ROOT}"}
    with LocalCluster(ROOT / "configs" / "ray.env", env=env) as cluster:
        yield cluster


def install(
    cluster: LocalCluster, applications: list[dict[str, Any]], *, timeout_s: float = START_TIMEOUT_S
) -> None:
    """Makes these models and a router the cluster's applications; returns when no other is left."""
    cluster.deploy([*applications, router_application(cluster.port)])
    cluster.wait_until_ready(timeout_s=timeout_s)
    wanted = {application["name"] for application in applications} | {"router"}
    deadline = time.monotonic() + timeout_s
    while not is_alone(cluster, wanted):
        assert time.monotonic() < deadline, cluster.statuses()
        time.sleep(0.2)


def is_alone(cluster: LocalCluster, wanted: set[str]) -> bool:
    """Whether Serve has these applications only, and each replica of the router knows it."""
    if set(cluster.statuses()) != wanted:
        return False
    for _ in range(NUM_READY_ANSWERS):
        answer = httpx.get(f"{cluster.url}/ready", timeout=30)
        if answer.status_code != 200 or set(answer.json()["models"]) != wanted - {"router"}:
            return False
    return True
