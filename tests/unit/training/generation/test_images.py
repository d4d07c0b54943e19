"""Samples of image models: they change no loss, come out alike each time, and end no run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import ImageChops

from tests.support.training_images import EDGE, make_cfg, run, save_images, save_pipeline
from truthgpt_serve.training.errors import TrainingError
from truthgpt_serve.training.generation.images import check_captions


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pipeline("sd", tmp_path_factory.mktemp("sd"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_images(tmp_path_factory.mktemp("data") / "images")


def test_images_are_painted_and_losses_are_those_without_them(
    sd: Path, images: Path, tmp_path: Path
) -> None:
    training: dict[str, Any] = {"max_steps": 4, "eval_every": 2, "ema_decay": 0.5}
    optim = {"lora": {"enabled": True, "dropout": 0.3}}
    given: dict[str, Any] = {"model_optim": optim, "data": {"eval_dataset": str(images)}}
    plain = run(make_cfg(sd, images, training=training, **given), tmp_path / "plain")
    samples: dict[str, Any] = {
        "prompts": ["a red square", "a blue square"],
        "steps": 2,
        "timeout_s": 600,
    }
    cfg = make_cfg(sd, images, training={**training, "samples": samples}, **given)
    found = run(cfg, tmp_path / "sampled")
    assert found.losses == plain.losses
    assert found.evaluations == plain.evaluations
    assert [step for step, _ in found.samples] == [2, 4]
    kept = [one for _, made in found.samples for one in made]
    assert [one.prompt for one in kept] == samples["prompts"] * 2
    assert not any(one.fault for one in kept), kept
    painted = [one.image for one in kept if one.image is not None]
    assert {image.size for image in painted} == {(EDGE, EDGE)}
    # The seeds are fixed: from one evaluation to the next only what was learned moves a pixel.
    moved: Any = [ImageChops.difference(painted[n], painted[n + 2]).getextrema() for n in (0, 1)]
    assert max(high for image in moved for _, high in image) < 64


def test_a_run_without_time_for_images_goes_on(sd: Path, images: Path, tmp_path: Path) -> None:
    samples: dict[str, Any] = {"prompts": ["a", "b"], "steps": 50, "timeout_s": 1e-3}
    cfg = make_cfg(sd, images, training={"max_steps": 1, "samples": samples})
    found = run(cfg, tmp_path / "run")
    assert len(found.losses) == 1
    faults = [one.fault for _, made in found.samples for one in made]
    assert faults == ["left out: training.samples.timeout_s 0.001 was over"] * 2


def test_a_chat_is_no_caption() -> None:
    prompts = ["a", [{"role": "user", "content": "a"}]]
    with pytest.raises(TrainingError, match=r"samples.prompts\[1\]: an image model takes no chat"):
        check_captions({"training": {"samples": {"prompts": prompts}}})
