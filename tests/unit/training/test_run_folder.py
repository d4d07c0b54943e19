from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import pytest

from truthgpt_serve.config import load_model_config
from truthgpt_serve.training.errors import TrainingError
from truthgpt_serve.training.events import EventReader, EventWriter, forget_after, read_events
from truthgpt_serve.training.guards import MARGIN_BYTES, check_loss, check_space
from truthgpt_serve.training.job import TrainingJob
from truthgpt_serve.training.monitor import RunMonitor
from truthgpt_serve.training.run_folder import (
    begin_checkpoint,
    checkpoints,
    finish_checkpoint,
    latest_checkpoint,
    locked,
    prune_checkpoints,
    read_json,
    remove_leftovers,
    replace_folder,
    working,
    write_json,
)
from truthgpt_serve.training.run_record import check_same, create_record


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
        with pytest.raises(TrainingError, match="another command goes on with this run"):
            orphan.should_stop()
    with locked(tmp_path):
        pass


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    assert read_json(tmp_path / "run.json") is None
    write_json(tmp_path / "run.json", {"a": 1})
    assert read_json(tmp_path / "run.json") == {"a": 1}
    (tmp_path / "run.json").write_text('{"a":')
    with pytest.raises(TrainingError, match=r"run\.json: cannot be read"):
        read_json(tmp_path / "run.json")


def record_of(folder: Path, **sections: Any) -> dict[str, Any]:
    given = {"model": {"name_or_path": "org/model"}, "data": {"dataset": "org/data"}, **sections}
    cfg = load_model_config(given, place="test").to_cfg()
    return create_record(TrainingJob(cfg, folder, None, 1))


@pytest.mark.parametrize(
    ("sections", "named"),
    [
        ({"training": {"learning_rate": 0.1}}, "training.learning_rate: was 5e-05, is 0.1"),
        ({"seed": 7}, "seed: was 42, is 7"),
        ({"model_optim": {"lora": {"enabled": False, "r": 4}}}, "model_optim.lora.r: was 16, is 4"),
        ({"data": {"dataset": "org/other"}}, "data.dataset: was 'org/data', is 'org/other'"),
    ],
)
def test_a_run_does_not_go_on_with_another_configuration(
    sections: dict[str, Any], named: str, tmp_path: Path
) -> None:
    old = record_of(tmp_path)
    with pytest.raises(TrainingError) as caught:
        check_same(tmp_path, old, record_of(tmp_path, **sections))
    assert named in str(caught.value)


def test_other_workers_and_other_data_are_noticed_and_free_keys_are_not(tmp_path: Path) -> None:
    old = record_of(tmp_path)
    free = {"training": {"checkpoint_every": 7, "tracker": "none"}, "serving": {"num_replicas": 2}}
    check_same(tmp_path, old, record_of(tmp_path, **free))
    other = copy.deepcopy(old) | {"num_workers": 2}
    with pytest.raises(TrainingError, match="--workers: was 1, is 2"):
        check_same(tmp_path, old, other)
    with pytest.raises(TrainingError, match="the files are others"):
        check_same(tmp_path, old, old | {"data_fingerprint": "x"})


def test_events_are_followed_and_forgotten(tmp_path: Path) -> None:
    writer = EventWriter(tmp_path)
    reader = EventReader(tmp_path)
    for step in (1, 2, 3):
        writer.write("step", step=step, loss=float(step))
    assert [event["step"] for event in reader.read()] == [1, 2, 3]
    assert not list(reader.read())
    with (tmp_path / "logs" / "events.jsonl").open("a") as stream:
        stream.write('{"event": "step", "st')  # a kill in the middle of a line
    assert not list(reader.read())
    assert [event["step"] for event in read_events(tmp_path)] == [1, 2, 3]
    forget_after(tmp_path, 2)
    assert [event["step"] for event in read_events(tmp_path)] == [1, 2]
    writer.close()


def test_space_is_checked_with_a_margin(tmp_path: Path) -> None:
    check_space(tmp_path, 100, lambda _: 100 + MARGIN_BYTES)
    with pytest.raises(TrainingError, match="the disk is full") as caught:
        check_space(tmp_path, 101, lambda _: 100 + MARGIN_BYTES)
    assert str(tmp_path) in str(caught.value)
    assert "there is no checkpoint yet" in str(caught.value)


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), -float("inf")])
def test_a_loss_must_be_a_number(loss: float, tmp_path: Path) -> None:
    add_checkpoint(tmp_path, 4)
    check_loss(tmp_path, 5, 1.0)
    with pytest.raises(TrainingError, match=r"the loss of step 6 is .*step-4"):
        check_loss(tmp_path, 6, loss)
