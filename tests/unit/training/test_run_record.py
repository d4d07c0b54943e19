"""What a run was started with, compared when it goes on."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from truthgpt_serve.config import load_model_config
from truthgpt_serve.training.errors import TrainingError
from truthgpt_serve.training.job import TrainingJob
from truthgpt_serve.training.run_folder import (
    read_json,
    write_json,
)
from truthgpt_serve.training.run_record import check_same, create_record


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


def test_other_images_of_the_class_are_noticed(tmp_path: Path) -> None:
    images = tmp_path / "class"
    images.mkdir()
    prior = {"prompt": "a dog", "images": str(images)}
    sections: dict[str, Any] = {"task": "image-generation", "training": {"prior": prior}}
    (images / "a.png").write_bytes(b"1")
    old = record_of(tmp_path, **sections)
    check_same(tmp_path, old, record_of(tmp_path, **sections))
    (images / "b.png").write_bytes(b"2")
    with pytest.raises(TrainingError, match="the files are others"):
        check_same(tmp_path, old, record_of(tmp_path, **sections))


def test_other_workers_and_other_data_are_noticed_and_free_keys_are_not(tmp_path: Path) -> None:
    old = record_of(tmp_path)
    free = {"training": {"checkpoint_every": 7, "tracker": "none"}, "serving": {"num_replicas": 2}}
    check_same(tmp_path, old, record_of(tmp_path, **free))
    # A record of before there were samples.
    del old["config"]["training"]["samples"]
    samples = {"prompts": ["Ada"], "max_new_tokens": 9}
    check_same(tmp_path, old, record_of(tmp_path, training={"samples": samples}))
    other = copy.deepcopy(old) | {"num_workers": 2}
    with pytest.raises(TrainingError, match="--workers: was 1, is 2"):
        check_same(tmp_path, old, other)
    with pytest.raises(TrainingError, match="the files are others"):
        check_same(tmp_path, old, old | {"data_fingerprint": "x"})
