"""Killed and gone on with: the losses and the result of a run that was never interrupted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import load_file

from tests.support.training_images import (
    distance,
    make_cfg,
    run,
    run_until_killed,
    save_pipeline,
)
from truthgpt_serve.training.errors import TrainingError
from truthgpt_serve.training.images.state import AVERAGE, STATE, WEIGHTS
from truthgpt_serve.training.run_folder import checkpoints

WORD = {"placeholder": "<toy>", "initializer": "cat"}
KINDS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "prior": ("sd", {"prior": {"prompt": "a thing", "num_images": 3, "steps": 1}}, {}),
    "word": ("sd", {"component": "textual_inversion", "textual_inversion": WORD}, {}),
    "words-of-xl": ("sdxl", {"component": "textual_inversion", "textual_inversion": WORD}, {}),
    "controlnet": ("sd", {"component": "controlnet"}, {}),
    "controlnet-of-xl": ("sdxl", {"component": "controlnet"}, {}),
    "autoencoder": ("sd", {"component": "vae"}, {}),
    "buckets-and-flips": (
        "sd",
        {},
        {"aspect_ratio_buckets": True, "bucket_step": 8, "random_flip": True},
    ),
    "cuts-and-flips": ("sd", {}, {"crop": "random", "random_flip": True}),
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of three shapes, each its own hint."""
    folder = tmp_path_factory.mktemp("data") / "images"
    folder.mkdir()
    lines = []
    for index, size in enumerate([(64, 32), (32, 64), (40, 40)] * 2):
        name = f"{index}.png"
        Image.radial_gradient("L").resize(size).convert("RGB").save(folder / name)
        lines.append(json.dumps({"file_name": name, "text": "a <toy>", "conditioning_image": name}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("weights")
    return {kind: save_pipeline(kind, folder / kind) for kind in ("sd", "sdxl")}


@pytest.mark.long("trains in processes that are killed")
@pytest.mark.parametrize("name", KINDS)
def test_killed_it_goes_on_with_the_same_losses(
    name: str, weights: dict[str, Path], images: Path, tmp_path: Path
) -> None:
    kind, training, data = KINDS[name]
    steps = {"max_steps": 4, "checkpoint_every": 2, "train_batch_size": 2}
    cfg = make_cfg(weights[kind], images, training={**steps, **training}, data=data)
    whole = run(cfg, tmp_path / "whole")
    run_until_killed(cfg, tmp_path / "killed", 3)
    resumed = run(cfg, tmp_path / "killed", resume=True)
    assert resumed.first_step == 2
    assert resumed.losses == whole.losses[2:]
    files = sorted((tmp_path / "whole/model").rglob("*.safetensors"))
    assert files
    for file in files:
        other = tmp_path / "killed" / file.relative_to(tmp_path / "whole")
        assert distance(load_file(file), load_file(other)) == 0


@pytest.mark.parametrize("length", [0, 100])
def test_a_checkpoint_that_is_cut_is_named(
    weights: dict[str, Path], images: Path, tmp_path: Path, length: int
) -> None:
    steps = {"max_steps": 2, "checkpoint_every": 1, "train_batch_size": 2, "keep_checkpoints": 2}
    cfg = make_cfg(weights["sd"], images, training={**steps, "ema_decay": 0.9})
    run(cfg, tmp_path / "run")
    checkpoint = checkpoints(tmp_path / "run")[-1]
    files = sorted(path for path in checkpoint.iterdir())
    assert {path.name for path in files} == {WEIGHTS, AVERAGE, STATE}
    for file in files:
        whole = file.read_bytes()
        file.write_bytes(whole[:length])
        with pytest.raises(TrainingError, match=f"{checkpoint}: cannot continue from this check"):
            run(cfg, tmp_path / "run", resume=True)
        file.write_bytes(whole)
