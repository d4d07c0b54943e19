"""The cluster on which each module of this folder deploys models that die and proxies that go."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.local_cluster import LocalCluster
from tests.serve.bare_cluster import bare_cluster


@pytest.fixture(scope="package")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder from which replicas import users' classes."""
    return tmp_path_factory.mktemp("modules")


@pytest.fixture(scope="package")
def bare(modules: Path) -> Iterator[LocalCluster]:
    with bare_cluster(modules) as cluster:
        yield cluster
