"""What image training learns beside a denoiser, compared with losses computed here directly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from tests.support.training_direct import Direct
from tests.support.training_images import (
    EDGE,
    make_cfg,
    run,
    run_workers,
    save_images_with_hints,
    save_pipeline,
)
from truthgpt_serve.training.errors import TrainingError
from truthgpt_serve.training.images import controlnet, denoiser, textual_inversion
from truthgpt_serve.training.images.data.draws import Augmentation, draw_for_training
from truthgpt_serve.training.job import TrainingJob

LATENT = (4, 16, 16)
WORD = {"placeholder": "<toy>", "initializer": "cat", "num_vectors": 2}


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pipeline("sd", tmp_path_factory.mktemp("sd"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_images_with_hints(tmp_path_factory.mktemp("data") / "images")


def _job(cfg: dict[str, Any], folder: Path) -> TrainingJob:
    return TrainingJob(cfg=cfg, folder=folder, checkpoint=None, num_workers=1)


def test_buckets_cut_less_off_and_go_on_exactly(sd: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for index, size in enumerate([(64, 32), (32, 64), (40, 40)] * 4):
        Image.new("RGB", size, (20 * index, 90, 200)).save(folder / f"{index:02d}.png")
    data = {"caption": "a plain", "aspect_ratio_buckets": True, "bucket_step": 8}
    augmented = {**data, "random_flip": True, "eval_share": 0.25}
    cfg = make_cfg(sd, folder, training={"checkpoint_every": 3}, data=augmented)
    plan = denoiser.prepare(_job(cfg, tmp_path / "run"))
    assert len(plan.size_counts) == 3
    assert any(line.startswith("buckets  ") for line in plan.sources)
    whole = run(cfg, tmp_path / "run")
    resumed = run(cfg, tmp_path / "run", resume=True)
    assert resumed.first_step in (6, 8)
    assert resumed.losses == pytest.approx(whole.losses[resumed.first_step :], rel=1e-6)
    assert all(np.isfinite(whole.losses + whole.evaluations))


def test_sdxl_is_told_the_size_of_each_image_and_its_cut(images: Path, tmp_path: Path) -> None:
    weights = save_pipeline("sdxl", tmp_path / "weights")
    data = {"crop": "random"}
    cfg = make_cfg(weights, images, training={"max_steps": 1}, data=data)
    losses = run(cfg, tmp_path / "run").losses
    direct = Direct(weights, cfg, images)
    rows = direct.rows(0)
    pipeline = direct.pipeline
    # Images of 40x32 pixels, of which up to 8 are cut off on the left.
    crops = Augmentation(crop=True)
    cuts = [draw_for_training(cfg["seed"], one, LATENT, crops).cut for one in range(4)]
    pixels, places = [], []
    for row, cut in zip(rows, cuts, strict=True):
        image = Image.open(images / f"{row}.png").convert("RGB")
        fitted = ImageOps.fit(
            image, (EDGE, EDGE), Image.Resampling.LANCZOS, centering=(cut.left, 0.5)
        )
        pixels.append(torch.from_numpy(np.asarray(fitted, dtype=np.float32) / 255).permute(2, 0, 1))
        places.append([32, 40, 0, round(8 * cut.left), EDGE, EDGE])
    assert len({place[3] for place in places}) > 1
    with torch.no_grad():
        noisy, steps, noise = direct.noised(0, torch.stack(pixels))
        embeds, _, pooled, _ = pipeline.encode_prompt(
            direct.captions(0), do_classifier_free_guidance=False
        )
        added = {"text_embeds": pooled, "time_ids": torch.tensor(places, dtype=torch.float32)}
        output = pipeline.unet(noisy, steps, embeds, added_cond_kwargs=added).sample
    assert losses[0] == pytest.approx(float((output - noise).square().mean()), abs=1e-5)


@pytest.mark.long("starts two processes that train")
def test_two_workers_share_buckets_and_the_class(sd: Path, images: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for index, size in enumerate([(64, 32), (32, 64)] * 4):
        Image.new("RGB", size, (20 * index, 90, 200)).save(folder / f"{index}.png")
    data = {"caption": "a plain", "aspect_ratio_buckets": True, "bucket_step": 8}
    prior = {"prompt": "a square", "images": str(images), "num_images": 6}
    sizes = {"train_batch_size": 2, "max_steps": 3, "prior": prior}
    alone = {**sizes, "grad_accum_steps": 2}
    one = run(make_cfg(sd, folder, training=alone, data=data), tmp_path / "one")
    shared = {**sizes, "grad_accum_steps": 1}
    told = run_workers(make_cfg(sd, folder, training=shared, data=data), tmp_path / "two", 2)
    assert told[0] == told[1]
    assert told[0] == pytest.approx(one.losses, rel=1e-4)
    assert not (tmp_path / "one/prior").exists()


def test_what_does_not_fit_is_refused_before_training(
    sd: Path, images: Path, tmp_path: Path
) -> None:
    def refused(loop: Any, words: str, **sections: Any) -> None:
        with pytest.raises(TrainingError, match=words):
            loop.prepare(_job(make_cfg(sd, images, **sections), tmp_path / "run"))

    def learn(**more: Any) -> dict[str, Any]:
        inversion = {**WORD, **more}
        return {"component": "textual_inversion", "textual_inversion": inversion}

    known = learn(placeholder="cat")
    refused(
        textual_inversion,
        "placeholder: 'cat' is a token already",
        training=known,
        data={"caption": "a cat"},
    )
    several = learn(initializer="cat dog")
    refused(
        textual_inversion,
        "initializer: 'cat dog' is 2 tokens",
        training=several,
        data={"caption": "a <toy>"},
    )
    refused(textual_inversion, "does not have the placeholder '<toy>'", training=learn())
    refused(denoiser, "the image is 40x32, and data.min_edge is 33", data={"min_edge": 33})
    other = tmp_path / "small.png"
    Image.new("RGB", (8, 8)).save(other)
    line = {"file_name": str(images / "0.png"), "text": "a", "conditioning_image": str(other)}
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({**line, "image": line["file_name"]}) + "\n")
    refused(
        controlnet,
        "rows.jsonl:1: 'conditioning_image' is 8x8 and the image 40x32",
        training={"component": "controlnet"},
        data={"dataset": str(rows)},
    )
