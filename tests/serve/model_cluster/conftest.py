"""The cluster on which each module of this folder deploys models of one kind or another."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.local_cluster import LocalCluster
from tests.serve.bare_cluster import bare_cluster

KEYS = {"FAR_TEST_KEY": "sk-secret-far-4711", "FAR_WRONG_KEY": "sk-wrong-far-4711"}
"""Keys of another server, by the variable that holds them: a right one and a wrong one."""


@pytest.fixture(scope="package")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder from which replicas import users' classes."""
    return tmp_path_factory.mktemp("modules")


@pytest.fixture(scope="package")
def bare(modules: Path) -> Iterator[LocalCluster]:
    with bare_cluster(modules, KEYS) as cluster:
        yield cluster
