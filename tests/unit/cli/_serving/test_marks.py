"""Which models are marked, so that Ray loads them again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from truthgpt_serve.cli._serving.marks import VARIABLE, mark_changed


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.yaml"
    path.write_text("a: 1")
    os.utime(path, (1000, 1000))
    return path


def serve_file(file: Path) -> dict[str, Any]:
    variables = {"runtime_env": {"env_vars": {"MINE": "1"}, "working_dir": "x"}}
    ours = {"import_path": "truthgpt_serve.app:model", **variables}
    own = {"name": "own", "args": {"config": str(file)}, **ours}
    return {"applications": [own, {"name": "inline", "args": {"model": {}}}, {"name": "bare"}]}


def started(*times_s: float, entry: Any = None) -> dict[str, Any]:
    replicas = [{"state": "RUNNING", "start_time_s": time_s} for time_s in times_s]
    replicas.append({"state": "STARTING", "start_time_s": 1})
    return {"deployments": {"d": {"replicas": replicas}}, "deployed_app_config": entry}


def mark(config: dict[str, Any]) -> str | None:
    found: dict[str, str] = config["applications"][0]["runtime_env"]["env_vars"]
    assert found.pop("MINE") == "1"
    return found.get(VARIABLE)


@pytest.mark.parametrize(
    ("running", "changed"),
    [
        ({}, []),
        ({"own": started(2000, 2001)}, []),
        ({"own": started(2000, 999)}, ["own"]),
        ({"own": started()}, ["own"]),
        ({"own": {}}, ["own"]),
    ],
)
def test_a_file_that_is_newer_than_a_replica(
    file: Path, running: dict[str, Any], changed: list[str]
) -> None:
    config = serve_file(file)
    assert list(mark_changed(config, running)) == changed
    assert bool(mark(config)) == bool(changed)
    assert config["applications"][0]["runtime_env"]["working_dir"] == "x"


def test_a_mark_stays_until_the_file_changes(file: Path) -> None:
    first = serve_file(file)
    assert mark_changed(first, {"own": started(999)}) == {"own": "its file has changed"}
    running = {"own": started(2000, entry=first["applications"][0])}
    same = serve_file(file)
    assert mark_changed(same, running) == {}
    assert same["applications"] == first["applications"]
    file.write_text("a: 2")
    os.utime(file, (1000, 1000))  # a copy may be older
    other = serve_file(file)
    assert list(mark_changed(other, running)) == ["own"]
    assert mark(other) not in (None, mark(first))


def test_again_is_once(file: Path) -> None:
    running = {name: started(2000) for name in ("own", "inline", "bare")}
    config = serve_file(file)
    reasons = mark_changed(config, running, ["own", "bare"])
    assert reasons == {"own": "as asked", "bare": "as asked"}
    now = {entry["name"]: started(3000, entry=entry) for entry in config["applications"]}
    same = serve_file(file)
    assert mark_changed(same, now) == {}
    assert same == config
    assert list(mark_changed(serve_file(file), now, ["bare"])) == ["bare"]


def test_what_has_failed_is_tried_again_each_time(file: Path) -> None:
    running: dict[str, Any] = {"inline": {"status": "DEPLOY_FAILED"}}
    config = serve_file(file)
    assert mark_changed(config, running) == {"inline": "it had failed"}
    running["inline"]["deployed_app_config"] = config["applications"][1]
    assert list(mark_changed(serve_file(file), running)) == ["inline"]
    running["inline"]["status"] = "RUNNING"
    assert mark_changed(serve_file(file), running) == {}


def test_applications_of_others_have_no_file_of_ours() -> None:
    """Ray needs no name for one, and its `args` may be anything."""
    entry = {"import_path": "my.module:app", "args": {"config": {"a": 1}}}
    config: dict[str, Any] = {"applications": [entry]}
    assert mark_changed(config, {"default": started(1)}) == {}
    assert config == {"applications": [entry]}
    assert mark_changed(config, {"default": started(1)}, ["default"]) == {"default": "as asked"}
