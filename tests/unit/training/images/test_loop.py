"""Image training: that it learns, and that its steps are what they should be."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from diffusers import EulerDiscreteScheduler

from tests.support.tiny_images import CALL_DEFAULTS
from tests.support.training_images import (
    Recorder,
    distance,
    load_result,
    make_cfg,
    read_weights,
    run,
    run_until_killed,
    run_workers,
    save_images,
    save_pipeline,
)
from truthgpt_serve.training.errors import TrainingError
from truthgpt_serve.training.images import denoiser
from truthgpt_serve.training.job import TrainingJob
from truthgpt_serve.training.run_folder import checkpoints

TOLERANCE = 1e-4
"""Of losses in float32, relative: sums in another order differ by less."""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_images(tmp_path_factory.mktemp("data") / "images")


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pipeline("sd", tmp_path_factory.mktemp("sd"))


def _predict_velocity(pipeline: Any) -> None:
    pipeline.scheduler = EulerDiscreteScheduler.from_config(
        pipeline.scheduler.config, prediction_type="v_prediction"
    )


@pytest.mark.long("trains each architecture")
@pytest.mark.parametrize(
    ("kind", "change", "more"),
    [
        ("sd", None, {}),
        ("sd", _predict_velocity, {"min_snr_gamma": 5.0}),
        ("sdxl", None, {"min_snr_gamma": 5.0}),
        ("sd3", None, {}),
        ("flux", None, {}),
    ],
    ids=["epsilon", "velocity", "sdxl", "sd3", "flux"],
)
def test_the_loss_falls_and_the_pipeline_is_whole(
    kind: str, change: Any, more: dict[str, Any], images: Path, tmp_path: Path
) -> None:
    weights = save_pipeline(kind, tmp_path / "weights", change)
    training = {"max_steps": 12, "eval_every": 6, "caption_dropout": 0.2, **more}
    cfg = make_cfg(weights, images, training=training, data={"eval_dataset": str(images)})
    before = run(
        {**cfg, "training": {**cfg["training"], "learning_rate": 1e-9, "max_steps": 1}},
        tmp_path / "untrained",
    ).evaluations[-1]
    monitor = run(cfg, tmp_path / "run")
    assert len(monitor.evaluations) == 2
    assert monitor.evaluations[-1] < monitor.evaluations[0] < before
    part = "transformer" if kind in ("sd3", "flux") else "unet"
    trained = read_weights(tmp_path / "run/model" / part)
    assert distance(trained, read_weights(weights / part)) > 1e-4
    assert distance(read_weights(tmp_path / "run/model/vae"), read_weights(weights / "vae")) == 0
    more = dict(CALL_DEFAULTS.get(kind, {}))
    size = {"width": 32, "height": 32, "num_inference_steps": 2}
    drawn = load_result(tmp_path / "run")("a red square", **size, **more).images
    assert drawn[0].size == (32, 32)


def test_accumulation_equals_a_larger_batch(sd: Path, images: Path, tmp_path: Path) -> None:
    whole = run(make_cfg(sd, images), tmp_path / "whole")
    parts = {"train_batch_size": 1, "grad_accum_steps": 4}
    split = run(make_cfg(sd, images, training=parts), tmp_path / "split")
    assert split.losses == pytest.approx(whole.losses, rel=TOLERANCE)
    assert len(whole.losses) == 8
    results = [read_weights(tmp_path / name / "model/unet") for name in ("whole", "split")]
    # Each processor sums in another order, and Adam divides by roots of tiny moments.
    assert distance(*results) < 3e-4


@pytest.mark.long("starts three processes that train")
def test_two_workers_equal_one_with_twice_the_accumulation(
    sd: Path, images: Path, tmp_path: Path
) -> None:
    data = {"eval_dataset": str(images)}
    sizes = {"train_batch_size": 2, "max_steps": 6}
    alone = {**sizes, "grad_accum_steps": 4}
    one = run(make_cfg(sd, images, training=alone, data=data), tmp_path / "one")
    shared = {**sizes, "grad_accum_steps": 2}
    cfg = make_cfg(sd, images, training=shared, data=data)
    told = run_workers(cfg, tmp_path / "two", 2)
    assert told[0] == told[1]
    assert told[0] == pytest.approx(one.losses, rel=TOLERANCE)
    results = [read_weights(tmp_path / name / "model/unet") for name in ("one", "two")]
    assert distance(*results) < 1e-4


@pytest.mark.long("starts three processes that train")
def test_resumed_after_a_kill_equals_uninterrupted(sd: Path, images: Path, tmp_path: Path) -> None:
    # Everything that a checkpoint must hold: the average, a schedule, and a generator for dropout.
    cfg = make_cfg(
        sd,
        images,
        training={
            "scheduler": "cosine",
            "warmup_ratio": 0.25,
            "ema_decay": 0.9,
            "checkpoint_every": 3,
            "keep_checkpoints": 1,
        },
        model_optim={"lora": {"enabled": True, "dropout": 0.3}},
        data={"num_loader_workers": 1, "eval_share": 0.25},
    )
    whole = run(cfg, tmp_path / "whole")
    run_until_killed(cfg, tmp_path / "killed", 5)
    assert [one.name for one in checkpoints(tmp_path / "killed")] == ["step-3"]
    resumed = run(cfg, tmp_path / "killed", resume=True)
    assert resumed.first_step == 3
    assert resumed.losses == pytest.approx(whole.losses[3:], rel=1e-6)
    assert resumed.rates == pytest.approx(whole.rates[3:])
    assert resumed.evaluations[-1] == pytest.approx(whole.evaluations[-1], rel=1e-6)
    results = [read_weights(tmp_path / name / "model") for name in ("whole", "killed")]
    assert distance(*results) < 1e-6


def test_asked_to_stop_it_saves_and_goes_on_later(sd: Path, images: Path, tmp_path: Path) -> None:
    cfg = make_cfg(sd, images)
    whole = run(cfg, tmp_path / "whole")
    stopped = run(cfg, tmp_path / "stopped", Recorder(stop_after=5))
    assert len(stopped.losses) == 5
    assert [one.name for one in checkpoints(tmp_path / "stopped")] == ["step-5"]
    assert not (tmp_path / "stopped/model").exists()
    resumed = run(cfg, tmp_path / "stopped", resume=True)
    assert stopped.losses + resumed.losses == pytest.approx(whole.losses, rel=1e-6)


def test_the_rate_rises_and_falls_by_optimizer_steps(
    sd: Path, images: Path, tmp_path: Path
) -> None:
    training = {"scheduler": "linear", "warmup_ratio": 0.25, "grad_accum_steps": 2}
    rates = run(make_cfg(sd, images, training=training), tmp_path / "run").rates
    expected = [0, 1 / 2, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]
    assert rates == pytest.approx([1e-3 * share for share in expected])


def test_checkpointing_and_bf16_learn_the_same(sd: Path, images: Path, tmp_path: Path) -> None:
    plain = run(make_cfg(sd, images), tmp_path / "plain")
    optim = {"gradient_checkpointing": True}
    again = run(make_cfg(sd, images, model_optim=optim), tmp_path / "again")
    assert again.losses == pytest.approx(plain.losses, rel=TOLERANCE)
    short = {"mixed_precision": "bf16"}
    mixed = run(make_cfg(sd, images, training=short), tmp_path / "mixed")
    assert mixed.losses == pytest.approx(plain.losses, rel=0.05)
    assert mixed.losses != plain.losses


def test_gradients_that_are_no_numbers_are_told(sd: Path, images: Path, tmp_path: Path) -> None:
    training = {"learning_rate": 1e30, "max_grad_norm": 0.0, "max_steps": 4}
    losses = run(make_cfg(sd, images, training=training), tmp_path / "run").losses
    assert math.isfinite(losses[0])
    assert not math.isfinite(losses[-1])


@pytest.mark.parametrize(
    ("kind", "sections", "words"),
    [
        ("pixart", {}, "PixArtSigmaPipeline.*StableDiffusion3Pipeline"),
        ("sd", {"training": {"mixed_precision": "fp16"}}, "mixed_precision: fp16 needs a GPU"),
        ("sd3", {"training": {"min_snr_gamma": 5.0}}, "min_snr_gamma"),
        (
            "sd",
            {"model_optim": {"lora": {"enabled": True, "target_modules": ["nothing"]}}},
            "target_modules.*to_q",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused(
    kind: str, sections: dict[str, Any], words: str, images: Path, tmp_path: Path
) -> None:
    cfg = make_cfg(save_pipeline(kind, tmp_path / "weights"), images, **sections)
    with pytest.raises(TrainingError, match=words):
        run(cfg, tmp_path / "run")


def test_the_plan_counts_what_is_trained(sd: Path, images: Path, tmp_path: Path) -> None:
    optim = {"lora": {"enabled": True, "r": 2}}
    cfg = make_cfg(sd, images, model_optim=optim, data={"eval_share": 0.25})
    facts = denoiser.prepare(TrainingJob(cfg=cfg, folder=tmp_path, checkpoint=None, num_workers=1))
    run(cfg, tmp_path / "run")
    adapter = read_weights(tmp_path / "run/model")
    assert facts.num_trainable == sum(one.numel() for one in adapter.values())
    parts = [read_weights(sd / name) for name in ("unet", "vae", "text_encoder")]
    counts = [one.numel() for part in parts for one in part.values()]
    assert facts.num_parameters == sum(counts) + facts.num_trainable
    assert (facts.num_examples, facts.num_eval_examples) == (6, 2)
