"""`truthgpt deploy` on a service that runs: what is loaded again, and what is left alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from benchmarks.local_cluster import LocalCluster, model_application, router_application
from tests.serve.bare_cluster import install

TIMEOUT_S = 180
CLASS = """
from pathlib import Path
from truthgpt_serve import register_model

@register_model("flagged")
class Flagged:
    def load(self, cfg):
        Path({flag!r}).read_bytes()

    def infer(self, inputs):
        return inputs
"""


class Files:
    """A Serve file with one model in a file of its own and one in its entry."""

    def __init__(self, folder: Path, cluster: LocalCluster) -> None:
        self.cluster = cluster
        self.model, self.serve = folder / "model.yaml", folder / "serve.yaml"
        self.applications = [
            model_application("own", {"config": str(self.model)}),
            model_application("inline", echo()),
            router_application(cluster.port),
        ]

    def write(self, *, host: str = "127.0.0.1") -> None:
        """Writes the Serve file."""
        options = {"host": host, "port": self.cluster.port}
        content = {
            "proxy_location": "EveryNode",
            "http_options": options,
            "applications": self.applications,
        }
        self.serve.write_text(yaml.safe_dump(content))

    def deploy(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs the command."""
        env = {**self.cluster.env, "RAY_DASHBOARD_ADDRESS": self.cluster.dashboard_url}
        return subprocess.run(
            [sys.executable, "-m", "truthgpt_serve.cli", "deploy", str(self.serve), *arguments],
            env=env, capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
        )  # fmt: skip

    def pids(self) -> dict[str, list[int]]:
        """Returns the replicas of both models."""
        return {name: self.cluster.replica_pids(name) for name in ("own", "inline")}


def echo(**serving: Any) -> dict[str, Any]:
    keys = {"family": "echo"}
    return {"model": keys, "hardware": {"cpus": 0.1, "gpus": 0}, "serving": serving}


@pytest.fixture(scope="module")
def files(bare: LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> Files:
    found = Files(tmp_path_factory.mktemp("files"), bare)
    found.model.write_text(yaml.safe_dump(echo()))
    install(bare, [model_application("gone", echo()), *found.applications[:-1]])
    return found


@pytest.mark.timeout(600)
def test_what_changed_is_loaded_again_and_nothing_else(files: Files) -> None:
    files.write()
    before = files.pids()
    done = files.deploy()
    assert done.returncode == 0, done.stderr
    assert "gone is taken out" in done.stdout
    assert "again" not in done.stdout
    assert done.stdout.splitlines()[-3:] == ["own runs", "inline runs", "router runs"]
    assert files.pids() == before

    files.model.write_text(yaml.safe_dump(echo(aliases=["second-name"])))
    done = files.deploy()
    assert done.returncode == 0, done.stderr
    assert "own is loaded again: its file has changed" in done.stdout
    assert "inline is" not in done.stdout
    changed = files.pids()
    assert changed["inline"] == before["inline"]
    assert set(changed["own"]).isdisjoint(before["own"])
    body = {"model": "second-name", "prompt": "a", "max_tokens": 2}
    answer = httpx.post(f"{files.cluster.url}/v1/completions", json=body, timeout=30)
    assert answer.status_code == 200, answer.text

    files.write(host="localhost")
    done = files.deploy()
    assert "is loaded again" not in done.stdout  # its mark stays
    assert "http_options.host stays 127.0.0.1 until the service is started again" in done.stdout
    files.write()
    assert files.pids() == changed
    done = files.deploy("--reload", "inline")
    assert "inline is loaded again: as asked" in done.stdout
    again = files.pids()
    assert again["own"] == changed["own"]
    assert set(again["inline"]).isdisjoint(changed["inline"])
    assert "again" not in files.deploy().stdout
    assert files.pids() == again


@pytest.mark.timeout(600)
def test_replicas_come_and_go_beside_those_that_run(files: Files) -> None:
    before = files.pids()
    inline = files.applications[-2]
    inline["deployments"] = [{"name": "ModelReplica", "num_replicas": 2}]
    files.write()
    done = files.deploy()
    assert done.returncode == 0, done.stderr
    assert "is loaded again" not in done.stdout
    more = files.pids()
    assert more["own"] == before["own"]
    assert len(more["inline"]) == 2
    assert set(before["inline"]) < set(more["inline"])
    inline["deployments"][0]["num_replicas"] = 1
    files.write()
    assert files.deploy().returncode == 0
    del inline["deployments"]
    files.write()
    assert files.deploy().returncode == 0
    assert len(files.pids()["inline"]) == 1


@pytest.mark.timeout(600)
def test_a_fault_changes_nothing_and_a_model_that_fails_is_named(
    files: Files, modules: Path
) -> None:
    before = files.pids()
    good = files.model.read_text()
    files.model.write_text(good.replace("echo", "ecko"))
    done = files.deploy()
    assert done.returncode == 2
    assert "ecko" in done.stderr
    files.model.write_text(good)
    assert files.deploy("--reload", "ovn").returncode == 2
    assert files.pids() == before

    flag = modules / "weights"
    (modules / "flagged.py").write_text(CLASS.format(flag=str(flag)))
    keys = {**echo(), "model": {"family": "flagged", "import": "flagged"}, "task": "custom"}
    files.applications.insert(0, model_application("bad", keys))
    files.write()
    done = files.deploy()
    assert done.returncode == 1
    assert "bad is new" in done.stdout
    assert "router runs" in done.stdout
    assert "`truthgpt why bad`" in done.stderr
    flag.write_bytes(b"")  # mended, and no file of the service's has changed
    done = files.deploy()
    assert done.returncode == 0, done.stderr
    assert "bad is loaded again: it had failed" in done.stdout
    assert files.pids() == before
