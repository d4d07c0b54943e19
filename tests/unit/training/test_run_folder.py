from __future__ import annotations

import os
from pathlib import Path

import pytest

from truthgpt_serve.config import load_model_config
from truthgpt_serve.training.errors import TrainingError
from truthgpt_serve.training.job import TrainingJob
from truthgpt_serve.training.monitor import RunMonitor
from truthgpt_serve.training.run_folder import (
    begin_checkpoint,
    checkpoints,
    finish_checkpoint,
    latest_checkpoint,
    locked,
    prune_checkpoints,
    remove_leftovers,
    replace_folder,
    working,
)


def add_checkpoint(folder: Path, step: int, content: str = "x") -> Path:
    unfinished = begin_checkpoint(folder, step)
    (unfinished / "weights").write_text(content)
    return finish_checkpoint(unfinished)


def test_only_whole_checkpoints_count_and_the_newest_is_by_number(tmp_path: Path) -> None:
    for step in (9, 10, 100):
        add_checkpoint(tmp_path, step)
    begin_checkpoint(tmp_path, 200)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-9", "step-10", "step-100"]
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoints" / "step-100"
    remove_leftovers(tmp_path)
    assert not list((tmp_path / "checkpoints").glob(".*"))
    assert latest_checkpoint(tmp_path / "none") is None


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    add_checkpoint(tmp_path, 1, "old")
    assert (add_checkpoint(tmp_path, 1, "new") / "weights").read_text() == "new"
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-1"]


def test_pruning_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    for step in range(1, 7):
        add_checkpoint(tmp_path, step)
    prune_checkpoints(tmp_path, 2, also=[3])
    assert [path.name for path in checkpoints(tmp_path)] == ["step-3", "step-5", "step-6"]


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    for name, file in (("new", "a"), ("model", "b")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text(file)
    replace_folder(tmp_path / "new", tmp_path / "model")
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["a"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_the_result_can_be_read_by_others(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "weights").touch(0o600)
    before = os.umask(0o022)
    try:
        replace_folder(tmp_path / "new", tmp_path / "model")
    finally:
        os.umask(before)
    assert (tmp_path / "model" / "weights").stat().st_mode & 0o777 == 0o644


def test_two_commands_do_not_share_a_folder(tmp_path: Path) -> None:
    busy = pytest.raises(TrainingError, match="another run is writing")
    with locked(tmp_path / "run"), busy, locked(tmp_path / "run"):
        pass
    with locked(tmp_path / "run"):
        pass


def test_a_worker_that_outlived_its_command_ends_and_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = load_model_config({}, place="test").to_cfg()
    job = TrainingJob(cfg, tmp_path, None, 1)
    with locked(tmp_path) as owner, RunMonitor(job, owner=owner) as monitor:
        assert not monitor.should_stop()
    with RunMonitor(job, owner=owner) as orphan, working(tmp_path):
        monkeypatch.setattr("truthgpt_serve.training.run_folder.ORPHANS_TIMEOUT_S", 0.3)
        still_there = pytest.raises(TrainingError, match="workers of a killed run still use it")
        with still_there, locked(tmp_path):
            pass
        with pytest.raises(TrainingError, match="another command continues this run"):
            orphan.should_stop()
    with locked(tmp_path):
        pass
